"""Songs that /create_random_sample proposes, for people who want to hear something before they write anything."""

import random
from typing import Any, Final

DESCRIPTIONS: Final[tuple[dict[str, Any], ...]] = (
    {"description": "a slow piano piece for a rainy evening", "instrumental": True, "vocal_language": "unknown"},
    {"description": "a cheerful folk song about the first warm day", "instrumental": False, "vocal_language": "en"},
    {"description": "driving techno for a night train", "instrumental": True, "vocal_language": "unknown"},
    {"description": "a soul ballad about coming home late", "instrumental": False, "vocal_language": "en"},
    {"description": "un boléro doux pour deux guitares", "instrumental": True, "vocal_language": "unknown"},
    {"description": "ein Wanderlied mit Akkordeon und Chor", "instrumental": False, "vocal_language": "de"},
    {"description": "una cumbia alegre sobre el mercado", "instrumental": False, "vocal_language": "es"},
    {
        "description": "an orchestral theme for a ship that leaves port",
        "instrumental": True,
        "vocal_language": "unknown",
    },
)
"""What a planner can make up a song for."""

SONGS: Final[tuple[dict[str, Any], ...]] = (
    {
        "think": False,
        "caption": "warm lo-fi piano, brushed drums, soft bass, rain in the background",
        "lyrics": "[Instrumental]",
        "bpm": 74,
        "duration": 90,
        "keyscale": "F major",
        "language": "unknown",
        "timesignature": "4",
    },
    {
        "think": False,
        "caption": "indie folk, acoustic guitar, light percussion, close female voice, hopeful",
        "lyrics": "[verse]\nThe window is open, the kettle is on\nThe neighbours are singing, the winter is gone\n\n"
        "[chorus]\nStay for a coffee, stay for a day\nThe road is not leaving, it's not far away",
        "bpm": 104,
        "duration": 120,
        "keyscale": "G major",
        "language": "en",
        "timesignature": "4",
    },
    {
        "think": False,
        "caption": "driving techno, analogue bass line, open hi-hats, dark pads",
        "lyrics": "[Instrumental]",
        "bpm": 132,
        "duration": 180,
        "keyscale": "A minor",
        "language": "unknown",
        "timesignature": "4",
    },
    {
        "think": False,
        "caption": "slow waltz, upright piano, strings, old gramophone",
        "lyrics": "[Instrumental]",
        "bpm": 88,
        "duration": 100,
        "keyscale": "D minor",
        "language": "unknown",
        "timesignature": "3",
    },
    {
        "think": False,
        "caption": "soul ballad, electric piano, warm organ, male voice, choir in the chorus",
        "lyrics": "[verse]\nThe last bus is sleeping, the street lights are low\nI carry my shoes and I walk through the snow\n\n"
        "[chorus]\nLeave one light burning, leave one for me\nI know every step, but it helps me to see",
        "bpm": 66,
        "duration": 150,
        "keyscale": "Bb major",
        "language": "en",
        "timesignature": "6",
    },
)
"""Songs with everything that /release_task needs."""


def any_description() -> str:
    """The words of one of DESCRIPTIONS."""
    return str(random.choice(DESCRIPTIONS)["description"])
