import socket

import pytest

from vmm_server.cli.listener import bind, listen, url_of
from vmm_server.errors import AddressInUse, SettingsError


def test_a_port_in_use_is_named_with_the_flag_that_mends_it() -> None:
    with bind("127.0.0.1", 0) as first:
        listen(first)
        port = first.getsockname()[1]
        with pytest.raises(AddressInUse) as caught:
            bind("127.0.0.1", port)
    assert str(port) in caught.value.message
    assert caught.value.hint is not None
    assert "--port" in caught.value.hint


def test_of_two_that_bound_the_same_port_only_one_listens() -> None:
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        listen(first)
        with pytest.raises(AddressInUse):
            listen(second)


def test_a_port_is_free_again_after_a_connection(tmp_path: object) -> None:
    with bind("127.0.0.1", 0) as first:
        listen(first)
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            first.accept()[0].close()  # leaves the server's side in TIME_WAIT
    with bind("127.0.0.1", port) as again:
        listen(again)


def test_a_host_that_is_no_address_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match="host 'no such host'") as caught:
        bind("no such host", 0)
    assert caught.value.param == "host"


@pytest.mark.parametrize(("host", "prefix"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_the_url_can_be_pasted(host: str, prefix: str) -> None:
    try:
        listener = bind(host, 0)
    except SettingsError:
        pytest.skip("no IPv6 here")
    with listener:
        assert url_of(listener) == f"{prefix}{listener.getsockname()[1]}"
