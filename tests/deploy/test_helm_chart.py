"""The Helm chart, rendered by the template engine that Helm uses, and held against Kubernetes' own schemas."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from source_tree import ROOT

CHART = ROOT / "deploy" / "helm" / "flexpipe"
KUBERNETES_VERSION = "1.34"
TEMPLATE_LIBRARIES = Path("/usr/share/gocode")
NEEDED = {
    "etcd": {"endpoints": ["https://etcd:2379"]},
    "keys": {"existingSecret": "secret", "allowedConfigMap": "nodes"},
}
MISSING = shutil.which("go") is None or not (TEMPLATE_LIBRARIES / "src/github.com/Masterminds/sprig").is_dir()

pytestmark = pytest.mark.skipif(
    MISSING and not os.environ.get("CI"), reason="needs golang-go and golang-github-masterminds-sprig-dev, as CI has"
)


@pytest.fixture(scope="module")
def render(tmp_path_factory):
    folder = tmp_path_factory.mktemp("render")
    program = folder / "render"
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": str(TEMPLATE_LIBRARIES),
        "GOCACHE": str(folder / "cache"),
    }
    source = Path(__file__).parent / "render" / "main.go"
    subprocess.run(["go", "build", "-o", program, source], env=environment, check=True)

    def run(values):
        (folder / "values.yaml").write_text(yaml.safe_dump(values))
        return subprocess.run([program, CHART, folder / "values.yaml"], capture_output=True, text=True, check=False)

    return run


def documents(rendered):
    assert rendered.returncode == 0, rendered.stderr
    return {each["kind"]: each for each in yaml.safe_load_all(rendered.stdout) if each}


EVERYTHING = NEEDED | {
    "etcd": {"endpoints": ["https://etcd:2379"], "tlsSecret": "etcd", "clientCertificate": True},
    "apiKeys": {"existingSecret": "api"},
    "modelCache": {"hostPath": "/var/lib/models"},
    "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "64Gi"}},
    "extraArgs": ["--devices", "cuda"],
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "nodeSelector": {"gpu": "yes"},
    "podAnnotations": {"note": "x"},
    "priorityClassName": "high",
    "imagePullSecrets": [{"name": "registry"}],
}


@pytest.mark.parametrize("values", [NEEDED, EVERYTHING], ids=["as little as possible", "everything set"])
def test_what_is_rendered_fits_kubernetes_schemas(render, values):
    found = documents(render(values))
    assert set(found) == {"DaemonSet", "Service", "ServiceAccount", "NetworkPolicy"}
    for document in found.values():
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


def test_a_document_with_a_wrong_field_would_be_found(render):
    document = documents(render(NEEDED))["DaemonSet"]
    document["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


def test_no_container_may_be_root_or_write_its_image(render):
    pod = documents(render(NEEDED))["DaemonSet"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    for container in pod["containers"] + pod["initContainers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_grace_period_is_above_the_sum_of_what_a_stopping_daemon_may_take(render):
    values = NEEDED | {"drain": {"moveSeconds": 300, "requestSeconds": 60, "marginSeconds": 10}}
    pod = documents(render(values))["DaemonSet"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 370
    assert "--drain=60" in pod["containers"][0]["args"]


def test_a_pod_monitor_is_there_where_it_was_asked_for(render):
    monitor = documents(render(NEEDED | {"podMonitor": {"enabled": True}}))["PodMonitor"]
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "http", "path": "/metrics", "interval": "15s"}]


def test_a_network_policy_lets_node_links_to_our_own_pods_only(render):
    http, node = documents(render(NEEDED))["NetworkPolicy"]["spec"]["ingress"]
    assert [port["port"] for port in http["ports"]] == ["http"]
    assert node["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "flexpipe"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [({}, "etcd.endpoints is empty"), ({"etcd": {"endpoints": ["https://etcd:2379"]}}, "flexpipe keys init")],
)
def test_what_is_missing_is_said_by_name(render, values, sentence):
    rendered = render(values)
    assert rendered.returncode == 1
    assert sentence in rendered.stderr


def test_every_flag_that_pods_pass_is_one_of_the_daemons(render):
    args = documents(render(EVERYTHING))["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["args"]
    flags = {argument.partition("=")[0] for argument in args if argument.startswith("--")}
    command = [sys.executable, "-m", "flexpipe.cli", "daemon", "--help"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert not {flag for flag in flags if flag not in known}
