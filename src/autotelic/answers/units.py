r"""Units and remarks after a value: ``12 \text{cm}^{2}``, ``9.8 \text{m} / \text{s}^{2}``, 12 apples are left.

A unit is recognised, never guessed: a known unit, a known count ("people"), or a plural noun. Words that change the
value ("million", "squared", "or more", "pm") are not units, and stay with the value.
"""

import re
from dataclasses import dataclass
from functools import lru_cache


def words(text: str) -> frozenset[str]:
    """Return the words of a table."""
    return frozenset(text.split())


_METRIC = """m meter metre; g gram gramme gm; s sec second; L liter litre l; N newton; J joule; Hz hertz; W watt; V
    volt; A amp ampere; C coulomb; F farad; T tesla; Pa pascal; mol mole; eV; Wh; cal calorie; bar; H henry; B byte;
    bit; Bq; Sv; Gy; lm lumen"""
_PREFIXES = {"": "", "n": "nano", "u": "micro", "m": "milli", "k": "kilo", "M": "mega", "G": "giga"}
_TABLE = """cm centimeter centimetre; dm decimeter decimetre; cL cl; dL dl; pF; TB; THz; hPa; h hour hr; in inch inche;
    ft foot feet; yd yard; mi mile; min minute; day; week wk; month; year yr; kg kilo; t
    ton tonne; lb lbs; u; M; oz ounce; gal gallon; qt quart; pt pint; cup; tsp
    teaspoon; tbsp; atm; K kelvin; kohm; Mohm; kcal;
    celsius;
    fahrenheit; mmHg; dB; ohm; degree deg; rad radian; rev revolution; unit; dollar usd USD buck; euro eur EUR; pound
    gbp GBP; yen jpy; ppm; amu; rupee rs Rs inr; cent; acre; hectare ha; mph; kmh kph; rpm; knot; person people; yuan
    rmb RMB; child children; man men; woman women; mouse mice; fish; sheep; goose geese; tooth teeth; die dice"""
_TABLE += "".join(
    ";" + " ".join(f"{prefix if len(name) < 3 or name[0].isupper() else word}{name}" for name in entry.split())
    for prefix, word in _PREFIXES.items() for entry in _METRIC.split(";")
)  # fmt: skip
UNITS: dict[str, str] = {}
for _names in (entry.split() for entry in _TABLE.split(";")):
    for _name in _names:
        UNITS.setdefault(_name, _names[0])
        if len(_name) > 2 and _name.islower():
            UNITS.setdefault(_name + "s", _names[0])
UNIT_LETTERS = frozenset("mgshKNJWVLlACFTMH")
r"""Letters that are units when they stand upright after a value (``3\text{m}``)."""
PLAIN_LETTERS = frozenset("mgshLlNJKVW")
"""Letters that are units after a number and a space even in italics: ``20 g``."""
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_COMPOUND = {"mph": {"mi": 1, "h": -1}, "kmh": {"km": 1, "h": -1}}
_FILLER = words(
    """of the a an in are is were was remaining left right total altogether each every day there will be pieces worth
    all different possible distinct extra from to at on by old tall long wide high deep away apart ago later
    time today now increase decrease gain loss profit discount up down north south east west clockwise
    counterclockwise older younger heavier lighter taller shorter faster slower longer approx approximately interest
    chance probability"""
)
DIRECTIONS = words(
    """left right increase decrease gain loss profit discount up down north south east west clockwise counterclockwise
    older younger heavier lighter taller shorter faster slower longer above below later ago"""
)
"""Remarks that decide: two answers that carry different ones are different."""
_CHANGING = words(
    """times plus minus less thirds halves fourths quarters fifths sixths sevenths eighths ninths tenths elevenths
    twelfths tens dozens hundreds thousands millions billions trillions squares cubes versus odds always perhaps
    thus tuesdays wednesdays thursdays fridays saturdays sundays mondays"""
)
_PARTS = re.compile(r"\w*(?:teen|tie|hundred|thousand|illion)ths")
_IN_UNIT = re.compile(
    r"\\text\{(?P<words>[^{}]*)\}|\^\s*\{?\s*(?P<power>-?\s*\d)\s*\}?|(?P<over>/)|(?P<skip>\\cdot|[.()\-\s])"
    r"|\\(?P<command>dollar|euro|pound|yen|rupee|cent|Omega|degree)(?![A-Za-z])|(?P<letter>[A-Za-z]+)"
)


@dataclass(frozen=True)
class Remark:
    """What follows a value.

    Attributes:
        units: Powers of known units, such as (("m", 1), ("s", -2)).
        nouns: Things counted, in the singular.
        directions: Words of `DIRECTIONS`.
    """

    units: tuple[tuple[str, int], ...] = ()
    nouns: frozenset[str] = frozenset()
    directions: frozenset[str] = frozenset()

    def differs(self, other: "Remark") -> bool:
        """Return whether both say something, and not the same."""
        if self.directions and other.directions and self.directions != other.directions:
            return True
        if self.units and other.units:
            return self.units != other.units
        return bool(self.nouns and other.nouns and not self.nouns & other.nouns)


@lru_cache(maxsize=4096)
def read_remark(text: str) -> Remark | None:
    """Return the unit or remark that a normalised text is, ``None`` where it is anything else."""
    units: dict[str, int] = {}
    nouns, directions = set(), set()
    position, sign, power, last = 0, 1, 1, {}
    while position < len(text):
        match = _IN_UNIT.match(text, position)
        if match is None:
            return None
        position = match.end()
        if match.lastgroup == "over":
            sign = -1
        elif match.lastgroup == "power":
            factor = int(match.group("power").replace(" ", ""))
            if last == {"ms": 1} and factor < 0:  # m s^{-1}, set without a space
                units.pop("ms")
                units |= {"m": 1, "s": factor}
            for name, was in last.items() if last != {"ms": 1} else ():
                units[name] = units.get(name, 0) + was * (factor - 1)
        words = match.group("command") or match.group("letter") or match.group("words") or ""
        found = re.findall(r"[^\s./,()·\-]+|/", words)
        for number, word in enumerate(found, start=1):
            following = found[number:]
            lower = word.lower()
            name = "ohm" if word == "Omega" else UNITS.get(word) or UNITS.get(lower)
            if lower == "of":  # of whatever it is; 3 of 5 is a share
                if not following and re.match(r"\s*\d", text[position:]):
                    return None
                position = len(text)
                break
            if word in ("/", "per"):
                sign = -1
            elif lower in _POWERS:
                power = _POWERS[lower]
            elif name is not None:
                last = {part: sign * power * exponent for part, exponent in _COMPOUND.get(name, {name: 1}).items()}
                for part, exponent in last.items():
                    units[part] = units.get(part, 0) + exponent
                power = 1
            elif lower in DIRECTIONS or lower in _FILLER:
                directions |= {lower} & DIRECTIONS
            elif lower in ("squared", "cubed") and last:
                for part, exponent in last.items():
                    units[part] += exponent * (1 if lower == "squared" else 2)
            elif lower in _CHANGING or _PARTS.fullmatch(lower):
                return None
            elif sign < 0 or (following and _is_plural(following[0].lower()) and following[0] not in _CHANGING):
                directions.add(lower)  # 4 red balls
            elif not _is_plural(lower):
                return None
            else:
                nouns.add(lower[:-3] + "y" if lower.endswith("ies") else lower[:-1])
    return Remark(tuple(sorted((k, v) for k, v in units.items() if v)), frozenset(nouns), frozenset(directions))


def _is_plural(word: str) -> bool:
    """Return whether a word is a plural noun, as far as its ending tells."""
    return len(word) >= 4 and word.isalpha() and word.endswith("s") and not word.endswith(("ss", "us", "is"))
