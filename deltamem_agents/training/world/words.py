"""Names and values of the world: small pools of real words, and an open vocabulary made of syllables and digits."""

from collections.abc import Callable
from random import Random

Maker = Callable[[Random], str]

SERVICES = (
    "atlas beacon borealis bramble cargo cascade cedar cinder citadel cobalt comet compass condor copper coral cosmos "
    "crater delta dune echo eclipse ember falcon fennel forge fossil gadget galaxy garnet glacier granite harbor hazel "
    "helix hermes hickory horizon indigo iris jasper juniper kestrel lagoon lantern lattice lotus lumen magnet mango "
    "maple marble meadow mercury meteor mosaic nebula nectar nimbus nova oasis obsidian onyx opal orbit orchid osprey "
    "otter parcel pebble phoenix pigeon pixel plasma polaris prism pulsar quartz quill radar raven reactor relay ripple "
    "rocket saffron sapphire saturn sequoia shadow signal silo solstice spark sphinx spruce summit talon tango thistle "
    "thunder topaz torrent tulip tundra turbine umbra vector velvet vertex violet vortex walnut willow zenith zephyr"
).split()
FIRST_NAMES = (
    "Ada Adil Aiko Alba Amir Ana Anton Asha Aziz Bea Ben Bruno Carla Celia Chen Clara Dana Daniel Diego Dora Elena Elif "
    "Emil Emma Eva Fadi Felix Fiona Gita Greta Hana Hugo Ida Ines Ivan Jana Jin Jonas Julia Kai Kamal Karin Kenji Kira "
    "Lara Leila Leo Lena Lina Luca Maja Malik Marco Maria Marta Mateo Maya Mina Mira Nadia Nia Nils Nina Noah Nora Olga "
    "Omar Oscar Otto Paolo Paula Pavel Petra Priya Rania Ravi Rita Rosa Ruben Sami Sara Sofia Stella Sven Tariq Tess "
    "Theo Tomas Uma Vera Viktor Vivian Wanda Wei Yara Yusuf Zara Zoe"
).split()
PROJECTS = (
    "Acorn Aurora Avalon Badger Bamboo Basil Birch Bison Breeze Cactus Canyon Castle Cobra Cypress Dolphin Dragon Eagle "
    "Elm Everest Fjord Gecko Geyser Ginger Heron Iceberg Jaguar Jungle Koala Laurel Lemon Lynx Magnolia Mammoth Monsoon "
    "Nutmeg Oak Olympus Panther Pepper Pine Puma Python Quasar Rainbow Redwood Safari Sahara Salmon Savanna Sparrow "
    "Sunrise Tiger Titan Trident Volcano Vulcan Walrus Wombat Yukon"
).split()
TEAMS = (
    "payments platform search data mobile security billing network design support release storage identity growth "
    "logistics frontend backend research quality finance"
).split()
CUSTOMERS = (
    "Acme Albion Borea Calder Dorado Edison Fabrica Gallant Helvetia Ideal Jubilee Krona Lumina Meridian Norden Orion "
    "Pacifica Quanta Regent Sigma Tempo Unity Vega Wexford Zenova"
).split()
PLACES = (
    "Lisbon Oslo Kyoto Lima Turin Ghent Quito Dakar Perth Basel Riga Porto Malmo Izmir Hanoi Cairo Delhi Lyon Bergen "
    "Gdansk Utrecht Nairobi Boston Denver Austin Toronto Sydney Leipzig Krakow Seville"
).split()
COLOURS = "red blue green yellow purple orange teal crimson amber black white silver pink turquoise maroon".split()
ANIMALS = "fox owl crane wolf bear hawk swan lion moose raven shark toad viper crow hare lark newt seal".split()
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday".split()

_ONSETS = "b d f g h j k l m n p r s t v z".split()
_VOWELS = "a e i o u".split()
_CODAS = ("", "n", "r", "l")


def syllables(rng: Random, count: int) -> str:
    """A made-up word such as "kelto" or "varimon"."""
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))


def made_up(rng: Random) -> str:
    return syllables(rng, 2)


def of(*options: str) -> Maker:
    """A value out of a closed list."""
    return lambda rng: rng.choice(options)


def number(low: int, high: int, form: str = "{}") -> Maker:
    return lambda rng: form.format(rng.randint(low, high))


def word(form: str = "{}") -> Maker:
    """A made-up word put into ``form``; "#" in it becomes a digit."""

    def make(rng: Random) -> str:
        text = form.format(made_up(rng))
        return "".join(str(rng.randint(1, 9)) if c == "#" else c for c in text) if "#" in text else text

    return make


def person(rng: Random) -> str:
    return f"{rng.choice(FIRST_NAMES)} {made_up(rng).capitalize()}"


def email(rng: Random) -> str:
    return f"{rng.choice(FIRST_NAMES).lower()}@{made_up(rng)}.io"


def date(rng: Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"


def clock(rng: Random) -> str:
    return f"{rng.randint(6, 20):02d}:{rng.choice(('00', '10', '15', '20', '30', '40', '45', '50'))}"


def version(rng: Random) -> str:
    return f"{rng.randint(0, 9)}.{rng.randint(0, 30)}.{rng.randint(0, 9)}"


def host(rng: Random) -> str:
    return f"{made_up(rng)}-{rng.randint(1, 40)}"


def region(rng: Random) -> str:
    return f"{rng.choice(('eu', 'us', 'ap', 'sa', 'af'))}-{rng.choice(('west', 'east', 'north', 'south'))}-{rng.randint(1, 9)}"


def money(rng: Random) -> str:
    return f"{rng.randint(2, 980)},000 {rng.choice(('euros', 'dollars'))}"


def ticket(rng: Random) -> str:
    return f"{rng.choice(('OPS', 'DEV', 'INC', 'REQ'))}-{rng.randint(100, 9999)}"


def code_name(rng: Random) -> str:
    return f"{rng.choice(COLOURS)} {rng.choice(ANIMALS)}"


def hours(rng: Random) -> str:
    return f"{rng.randint(6, 11)} to {rng.randint(14, 21)}"


def place(rng: Random) -> str:
    return rng.choice(PLACES) if rng.random() < 0.5 else made_up(rng).capitalize()
