"""POST /flexpipe/v1/refactor on a real HTTP server, over a refactorer in memory."""

import pytest
import trio
from flexpipe.actors.gateway.app import GatewayConfig
from flexpipe.actors.gateway.http_server import ServerLimits
from flexpipe.actors.refactor import RefactorProgress
from gateway_harness import frames_of, running_gateway
from toy_refactorer import ToyRefactorer

REFACTOR = "/flexpipe/v1/refactor"
ONE_BODY = {"accept": "application/json"}


def refactoring_gateway(refactorer=None, **options):
    return running_gateway(refactorer=refactorer or ToyRefactorer(), **options)


async def refactor(gateway, body=None, **headers):
    async with gateway.http() as client:
        return await client.post(REFACTOR, json={"stages": 4} if body is None else body, headers=headers)


async def test_a_refactoring_is_told_event_by_event_and_ends_with_its_report():
    async with refactoring_gateway() as gateway:
        response = await refactor(gateway)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        *progress, report = frames_of(response.content)
        assert {event["kind"] for event in progress} == {"progress"}
        assert [event["done"] for event in progress if event["phase"] == "copy"] == [64, 128, 192, 256]
        assert (report["kind"], report["epoch"], len(report["stages"])) == ("report", 2, 4)
        assert gateway.refactorer.shape == (3, 3, 3, 3)


async def test_a_client_that_takes_json_only_waits_for_the_report():
    async with refactoring_gateway() as gateway:
        response = await refactor(gateway, {"partition": "2,10", "strategy": "restart"}, **ONE_BODY)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert (response.json()["kind"], response.json()["strategy"]) == ("report", "restart")
        assert gateway.refactorer.shape == (2, 10)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"stages": 2, "partition": "6,6"}, "partition"),
        ({"stages": 0}, "stages"),
        ({"stages": "two"}, "stages"),
        ({"replicas": -1}, "replicas"),
        ({"replicas": 2, "replica": 1}, "replica"),
        ({"stages": 2, "replica": -1}, "replica"),
        ({"partition": ""}, "partition"),
        ({"move": "1" * 5000}, "move"),
        ({"stages": 2, "strategy": "hope"}, "strategy"),
        ({"stages": 2, "allow_preempt": "yes"}, "allow_preempt"),
        ({"stages": 2, "device": "cpu:1"}, "device"),
    ],
)
async def test_a_bad_request_is_refused_by_the_name_of_its_parameter(body, param):
    async with refactoring_gateway() as gateway:
        response = await refactor(gateway, body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
        assert gateway.refactorer.epoch == 1


async def test_the_error_names_what_was_given():
    async with refactoring_gateway() as gateway:
        sentence = (await refactor(gateway, {"stages": 2, "move": "1-2:cpu:3"})).json()["error"]["message"]
        assert "`stages` and `move`" in sentence


@pytest.mark.parametrize("headers", [{}, ONE_BODY])
async def test_what_the_model_refuses_is_a_plain_conflict_and_changes_nothing(headers):
    async with refactoring_gateway() as gateway:
        response = await refactor(gateway, {"stages": 13}, **headers)
        assert response.status_code == 409
        error = response.json()["error"]
        assert (error["code"], error["message"]) == ("refactor_refused", "13 stages are more than the 12 layers.")
        assert gateway.refactorer.shape == (6, 6)
        (ended,) = gateway.log_events("http_refactor_ended")
        assert ended["outcome"] == "refactor_refused"


async def test_a_second_refactoring_while_one_runs_is_a_conflict():
    async with refactoring_gateway() as gateway:
        gateway.refactorer.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refactor, gateway)
            await gateway.refactorer.until_running()
            response = await refactor(gateway, {"stages": 3})
            gateway.refactorer.release()
        assert (response.status_code, response.json()["error"]["code"]) == (409, "refactor_refused")
        assert gateway.refactorer.shape == (3, 3, 3, 3)


@pytest.mark.parametrize(("reason", "status"), [("aborted", 409), ("recovered", 503)])
async def test_what_fails_under_way_is_the_last_event_or_an_error_for_who_waits(reason, status):
    async with refactoring_gateway() as gateway:
        gateway.refactorer.fail_next(reason)
        *_, failed = frames_of((await refactor(gateway)).content)
        assert (failed["kind"], failed["reason"]) == ("failed", reason)
        gateway.refactorer.fail_next(reason)
        response = await refactor(gateway, **ONE_BODY)
        assert response.status_code == status
        assert response.json()["error"]["code"] == f"refactor_{reason}"
        assert response.json()["error"]["message"] == failed["sentence"]
        assert [event["outcome"] for event in gateway.log_events("http_refactor_ended")] == [f"refactor_{reason}"] * 2


async def test_a_client_that_leaves_does_not_break_the_change_off():
    async with refactoring_gateway() as gateway:
        gateway.refactorer.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refactor, gateway)
            await gateway.refactorer.until_running()
            nursery.cancel_scope.cancel()
        gateway.refactorer.release()
        await gateway.refactorer.until_idle()
        assert gateway.refactorer.shape == (3, 3, 3, 3)
        assert gateway.log_events("http_refactor_ended")[0]["outcome"] == "client_disconnected"


async def test_a_server_without_a_refactorer_says_so():
    async with running_gateway() as gateway:
        response = await refactor(gateway)
        assert (response.status_code, response.json()["error"]["code"]) == (501, "refactor_unsupported")


async def test_refactoring_needs_the_key():
    async with refactoring_gateway(config=GatewayConfig(api_keys=("right",))) as gateway:
        assert (await refactor(gateway)).status_code == 401
        assert gateway.refactorer.epoch == 1
        assert (await refactor(gateway, authorization="Bearer right")).status_code == 200


async def test_shutdown_ends_the_watching_with_an_error_frame():
    async with refactoring_gateway(limits=ServerLimits(drain_s_max=0.2)) as gateway, gateway.http() as client:
        gateway.refactorer.hold(("commit",))
        async with client.stream("POST", REFACTOR, json={"stages": 4}) as response:
            gateway.shutdown.set()
            *_, last = frames_of(await response.aread())
        assert last["error"]["code"] == "shutting_down"
        await gateway.stopped.wait()


class BrokenRefactorer(ToyRefactorer):
    """Breaks what every refactorer promises: by ending without a last event, or by raising what it may not."""

    def __init__(self, *, raises):
        super().__init__()
        self._raises = raises

    async def refactor(self, request):
        yield RefactorProgress(2, "plan", 0, 0, "planning")
        if self._raises:
            raise OSError("no such disk")


@pytest.mark.parametrize("raises", [True, False])
async def test_a_refactorer_that_breaks_its_contract_is_an_internal_error_in_the_log(raises):
    async with refactoring_gateway(BrokenRefactorer(raises=raises)) as gateway:
        *_, last = frames_of((await refactor(gateway)).content)
        assert last["error"]["code"] == "internal_error"
        assert (await refactor(gateway, **ONE_BODY)).status_code == 500
        assert len(gateway.log_events("http_request_broke")) == 2
