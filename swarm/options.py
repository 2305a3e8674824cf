"""What several commands ask for in the same way, and how an argument's text becomes a value."""

from __future__ import annotations

import argparse

from swarm.settings import Settings


def network_options() -> argparse.ArgumentParser:
    """How a peer is reached, whom it meets, and who pays: the same for `join` and `doctor`."""
    network = argparse.ArgumentParser(add_help=False)
    network.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="MULTIADDR",
        help="where to be reached, TCP or QUIC, IPv4 or IPv6 (any free TCP port; of this machine only if "
        "the chain is on it)",
    )
    network.add_argument(
        "--public-address",
        action="append",
        default=[],
        metavar="MULTIADDR",
        help="what others are told instead, where a router forwards a port",
    )
    network.add_argument(
        "--nat",
        choices=("auto", "off"),
        default="auto",
        help="port mapping, hole punching and relaying, unless listening to this machine only (%(default)s)",
    )
    network.add_argument(
        "--relay-peer",
        action="append",
        default=[],
        metavar="MULTIADDR",
        help="a public peer through which others reach this one behind a NAT; has nothing to do with --relay",
    )
    network.add_argument(
        "--peer", action="append", default=[], metavar="MULTIADDR", help="a peer to connect to first"
    )
    network.add_argument("--relay", metavar="URL", help="a gas relay: pays for this peer's transactions")
    network.add_argument("--invite", metavar="CODE", help="the gas relay's invite, if it asks for one")
    return network


def model_options() -> argparse.ArgumentParser:
    """What is trained on which device, and who is told."""
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "--model", metavar="NAME", help="which of the swarm's models (the largest that fits into the memory)"
    )
    model.add_argument(
        "--device", default="auto", help="cuda, cuda:1, mps or cpu (the first of them that is there)"
    )
    trained = model.add_mutually_exclusive_group()
    trained.add_argument(
        "--lora", action="store_true", default=None, help="train an adapter (from 300M parameters on)"
    )
    trained.add_argument("--full", dest="lora", action="store_false", help="train all weights (below that)")
    model.add_argument(
        "--four-bit", action="store_true", help="with an adapter on CUDA: the frozen weights in 4 bits"
    )
    model.add_argument(
        "--memory-share",
        type=fraction,
        default=1.0,
        metavar="FRACTION",
        help="of the free memory, for one of several peers on a machine (%(default)s)",
    )
    model.add_argument(
        "--trust-code",
        action="append",
        default=[],
        metavar="OWNER/NAME@COMMIT",
        help="let this model run the code that it brings",
    )
    model.add_argument(
        "--processes",
        type=count,
        default=1,
        metavar="N",
        help="that train together, a GPU each (%(default)s)",
    )
    model.add_argument("--threads", type=count, help="CPU threads for the model (as many as there are cores)")
    model.add_argument(
        "--tracker",
        action="append",
        default=[],
        metavar="NAME",
        help="where curves go: tensorboard, wandb, trackio or none (tensorboard)",
    )
    model.add_argument("--push", metavar="OWNER/NAME", help="put the model on the Hugging Face hub")
    model.add_argument(
        "--push-every", type=count, default=100, metavar="ROUNDS", help="how often (%(default)s)"
    )
    model.add_argument("--push-public", action="store_true", help="as a public repository, if it is made")
    return model


def trackers(names: list[str]) -> tuple[str, ...]:
    """Without any, the default; `none` stands for no tracker at all."""
    return tuple(name for name in names if name != "none") if names else Settings.trackers


def count(text: str) -> int:
    """A whole number from 1 on. As all below, for `argparse`, which shows the error."""
    value = seed(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def host_and_port(text: str) -> tuple[str, int]:
    """`HOST:PORT`, IPv6 in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def place_or_off(text: str) -> tuple[str, int] | None:
    """`HOST:PORT`, or `off` for None."""
    return None if text == "off" else host_and_port(text)


def ether(text: str) -> float:
    """An amount in ether, from 0 on."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not an amount in ether")
    return value


def fraction(text: str) -> float:
    """Over 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number over 0 and at most 1")
    return value


def share(text: str) -> float:
    """From 0 to 1."""
    return 0.0 if text == "0" else fraction(text)


def seed(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number of up to 18 digits")
    return int(text)
