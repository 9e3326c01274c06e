"""Where workers meet: names of one node's links become paths on that node only, and nobody else's path is taken."""

import pytest
from flexpipe.actors.link_place import LinkPlace, NamedPlaces, Surroundings, address_here
from flexpipe.transport.address import AddressError


def test_a_name_is_looked_up_in_the_folder_of_ones_own_node():
    assert address_here("here://0-3-activations-1", "/run/a") == "ipc:///run/a/0-3-activations-1"
    assert Surroundings(None, "/run/b").ring_path(LinkPlace("here://x")) == "/run/b/x.ring"


@pytest.mark.parametrize("name", ["", "../other", "a/b", "A", "-a", "a" * 65, "a\0b", "a b"])
def test_a_name_that_could_lead_elsewhere_is_refused(name):
    with pytest.raises(AddressError, match="no name of a link"):
        address_here(f"here://{name}", "/run/a")


@pytest.mark.parametrize("address", ["ipc:///etc/passwd", "ipc://relative"])
def test_a_path_that_another_process_chose_is_refused(address):
    with pytest.raises(AddressError, match="only this host's own daemon may choose"):
        address_here(address, "/run/a")


def test_a_link_between_hosts_has_no_ring():
    around = Surroundings(None, "/run/a")
    place = LinkPlace("tcp://10.0.0.2:7710", b"k" * 32)
    assert around.address(place) == "tcp://10.0.0.2:7710"
    assert around.ring_path(place) is None


def test_named_places_of_one_host_differ_by_epoch_and_link():
    places = NamedPlaces("here://0-{epoch}-{link}")
    found = {places.place(epoch, link, "cpu:0", "cpu:1") for epoch in (1, 2) for link in ("activations-1", "pages-0-1")}
    assert len(found) == 4
    assert LinkPlace("here://0-2-pages-0-1") in found
