import pytest

from identity import IdentityError, registration_message, rotation_message

CONTRACT, ACCOUNT, OLD, NEW = b"c" * 20, b"a" * 20, b"o" * 32, b"n" * 32


def test_registration_message_is_fixed_fields_after_its_purpose():
    message = registration_message(31_337, CONTRACT, ACCOUNT, 258)
    assert message == (
        b"swarm/1/register" + bytes(30) + b"\x7a\x69" + CONTRACT + ACCOUNT + b"\x00\x00\x01\x02"
    )


def test_rotation_message_is_fixed_fields_after_its_purpose():
    message = rotation_message(1, CONTRACT, OLD, NEW)
    assert message == b"swarm/1/rotate" + bytes(31) + b"\x01" + CONTRACT + OLD + NEW


@pytest.mark.parametrize(
    "arguments",
    [
        (-1, CONTRACT, ACCOUNT, 0),
        (1 << 256, CONTRACT, ACCOUNT, 0),
        (1, CONTRACT[1:], ACCOUNT, 0),
        (1, CONTRACT, ACCOUNT + b"a", 0),
        (1, CONTRACT, ACCOUNT, 1 << 32),
    ],
)
def test_field_of_another_size_is_refused(arguments):
    with pytest.raises(IdentityError):
        registration_message(*arguments)


def test_peer_of_another_size_is_refused():
    with pytest.raises(IdentityError, match="old peer"):
        rotation_message(1, CONTRACT, OLD[:-1], NEW + b"x")
