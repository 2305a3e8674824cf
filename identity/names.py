"""A name that people can say: adjective, colour and animal, computed from the peer id."""

from __future__ import annotations

import hashlib

ADJECTIVES = (
    "able agile airy alert amber ample avid blithe bold brave breezy bright brisk calm candid careful cheery "
    "civil clever cosy crisp curious daring deft eager earnest fabled fair fleet fond frank gentle glad grand "
    "hardy hasty humble jolly keen kind lively loyal lucky mellow merry mighty modest neat nimble noble patient "
    "placid plucky polite proud quick quiet ready robust sage steady sunny swift tidy"
).split()
COLOURS = (
    "alabaster amaranth apricot aqua ashen auburn azure beige bisque black blue bronze brown buff cerise cobalt "
    "copper coral cream crimson cyan ebony ecru emerald fawn flaxen fuchsia garnet ginger golden green grey "
    "hazel henna indigo ivory jade khaki lavender lemon lilac lime linen magenta maroon mauve mint mocha ochre "
    "olive orange peach pearl pink plum puce purple red rose ruby russet saffron sable teal"
).split()
ANIMALS = (
    "aardvark albatross alpaca antelope armadillo badger bat beaver bison bobcat buffalo camel capybara caribou "
    "cheetah chinchilla cobra condor cougar coyote crane dingo dolphin eagle egret elk falcon ferret finch fox "
    "gazelle gecko gibbon gopher heron hippo hyena ibex iguana impala jackal jaguar kestrel kiwi koala lemur "
    "leopard llama lynx macaw marmot meerkat moose narwhal ocelot okapi otter panda pelican puffin raccoon seal "
    "tapir wombat"
).split()


def peer_name(peer: bytes) -> str:
    """Three words for a 32-byte peer digest; the same everywhere, not unique: ids decide, names remind."""
    digest = hashlib.sha256(b"swarm/1/name" + peer).digest()
    return " ".join(
        words[int.from_bytes(digest[8 * i : 8 * i + 8], "big") % len(words)]
        for i, words in enumerate((ADJECTIVES, COLOURS, ANIMALS))
    )
