"""Many ways to ask for a part of a tumour, and for what is none."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from clipseg3d.texts.wording import AMERICAN, WORDS, Site, expand, with_slips

Target = Literal["whole", "core", "enhancing", "necrosis", "oedema", "none"]
TARGETS: tuple[Target, ...] = ("whole", "core", "enhancing", "necrosis", "oedema", "none")
"""What a prompt denotes: the tumour with its oedema, the core, its enhancing part, its part that
does not enhance, the tumour outside the core, or nothing that a tumour has."""


@dataclass(frozen=True)
class Request:
    """What a prompt asks for.

    Attributes:
        target: part of the tumour.
        side: restricts it to a hemisphere; None for both.
        site: restricts it to a place; None for all.
        pick: restricts it to one of several separate parts; None for all.
    """

    target: Target
    side: Literal["left", "right"] | None = None
    site: Site | None = None
    pick: Literal["largest", "smallest"] | None = None


_WORDS = {
    **WORDS,
    "thing": "{tumour|tumour|lesion|mass|neoplasm|glioma|growth|cancer|glioblastoma|malignancy"
    "|space-occupying lesion|brain tumour}",
    "t1c": "{post-contrast T1|T1 post contrast|T1ce|contrast-enhanced T1|T1 with gadolinium|T1+C"
    "|gadolinium T1|the T1 contrast scan}",
    "flair": "{FLAIR|T2|T2/FLAIR|the FLAIR sequence|FLAIR images|T2 images}",
    "bright": "{bright|hyperintense|high-signal|white|lit up|light}",
    "dark": "{dark|hypointense|low-signal|black|unlit|dull}",
    "part": "{part|portion|component|area|region|tissue|parts|zone|areas|compartment|segment}",
}
_PARTS = {
    "whole": (
        "{the |}{whole|entire|complete|full} <thing>{| including oedema| with its oedema|, core and"
        " oedema| and swelling| with everything around it}",
        "{all|everything} {abnormal|pathological|that is abnormal|not normal|that belongs to the"
        " <thing>}",
        "{the |}<thing> {and|plus|together with|including|with} {its |the |surrounding |}{oedema"
        "|swelling}",
        "{all|any} {abnormal|pathological|diseased|affected} {signal|tissue|voxels|brain}{| on"
        " <flair>}",
        "{the |}<bright> {signal|area|region|zone} on <flair>, {tumour|core} and oedema",
        "{the |}total {extent|volume|area} of {the <thing>|disease|signal abnormality}",
        "whole {tumour|lesion}, WT",
        "WT",
        "FLAIR-bright glioma with surrounding oedema",
        "{the |}{tumour burden|disease burden|affected brain|abnormality as a whole}",
        "{everything|all tissue} {the disease involves|affected by the <thing>}",
        "{the |}{outline|outer border|outermost extent} of the {abnormality|signal change}",
        "<thing> in total",
    ),
    "core": (
        "{the |}{tumour|solid|lesion} core",
        "{the |}core {of the <thing>|without oedema|region}",
        "{the |}<thing> {without|minus|excluding|except|but not} {its |the |surrounding |}{oedema"
        "|swelling}",
        "{the |}{solid|actual|gross|main} <thing>{| itself| proper| bulk}",
        "{necrosis|necrotic tissue} {and|plus|with} {enhancing|solid} {tumour|tissue|rim}",
        "{the |}{enhancing|bright} and {necrotic|non-enhancing} {parts|tumour}{| together}",
        "TC",
        "tumour core, TC",
        "{the |}{resectable|surgical} {tumour|target|mass}",
        "{the |}{bulk|body|mass} of the <thing>",
        "{the |}gross tumour{| volume}{|, GTV}",
        "{the |}<thing> inside the oedema",
        "tumour core with necrosis on post-contrast T1",
        "{what a surgeon would remove|the part to resect}",
        "{the |}{central|inner} <thing>, {rim and necrosis|ring and centre}",
        "{the |}solid and necrotic {tumour|parts}",
    ),
    "enhancing": (
        "{the |}<enhancing> {tumour|rim|ring|<part>|tissue|nodule|margin|border|mass|lesion|core}",
        "{the |}{enhancement|contrast enhancement|gadolinium enhancement|contrast uptake}",
        "{the |}<rim> of {contrast |}enhancement{| on <t1c>}",
        "{the |}<bright> {rim|ring|border|part|tissue|area|spots|nodule|margin} on <t1c>",
        "{what|the <part> that|tissue that|everything that|all that} <enhances>{| <after>}",
        "{the |}<part> {taking up contrast|with contrast uptake|showing enhancement|lighting up"
        "|enhancing after gadolinium}",
        "{ring|rim|peripheral|nodular|solid} enhancement",
        "ET",
        "enhancing tumour, ET",
        "{active|viable|vital|vascularised} {enhancing |}{tumour|tissue|rim|part}",
        "{the |}{disrupted|broken|leaky} blood-brain barrier",
        "ring of contrast enhancement on post-contrast T1",
        "contrast-enhancing <thing>",
        "{gadolinium|contrast}-avid {tissue|tumour|part}",
    ),
    "necrosis": (
        "{the |}{necrosis|necrotic core|necrotic centre|necrotic tissue|necrotic <part>|dead tissue"
        "|dead core|dead centre|necrotic debris|cystic core|central necrosis|tissue breakdown}",
        "{the |}{non-enhancing|unenhancing|nonenhancing} {core|tumour|<part>|centre|solid tumour}",
        "{the |}<dark> {core|centre|interior|middle|part} {on <t1c>|of the <thing>|inside the"
        " <rim>}",
        "{the |}{core|part of the core} {that does not|which does not} <enhance>",
        "{the |}{inside|interior|inner part} of the {ring|rim|enhancing rim}",
        "NCR",
        "{necrosis|necrotic core}, NCR",
        "{necrotic|dead|liquefied|cystic|broken down} {tumour|centre|part|tissue|areas}",
        "tumour {core |}without enhancement",
        "{the |}{avascular|devitalised} {core|centre|tissue}",
        "{what|the part that} {has died|is dead} {inside|within} the <thing>",
        "{the |}{fluid|cyst|cavity} inside the {ring|rim|<thing>}",
    ),
    "oedema": (
        "{the |}{oedema|swelling|vasogenic oedema|peritumoural oedema|perifocal oedema"
        "|surrounding oedema|perilesional oedema|brain swelling|white matter oedema}",
        "{the |}{swelling|swollen tissue|swollen brain|swollen white matter|oedema|fluid} {around"
        "|surrounding|next to|outside|near} the {<thing>|core|mass}",
        "{the |}<bright> {area|halo|signal|zone|white matter} {on <flair> |}around the {<thing>"
        "|core}",
        "{the |}{FLAIR|T2} {signal|brightness|hyperintensity} {outside|around|beyond} the {core"
        "|solid tumour|<thing>}",
        "{the |}{halo|penumbra|surroundings} of the <thing>{| on <flair>}",
        "ED",
        "{peritumoral edema|oedema}, ED",
        "{oedematous|swollen|waterlogged} {tissue|brain|white matter|parenchyma}",
        "{the |}{tumour|abnormal signal} {outside|beyond|without} the core",
        "{the |}{extent|area} of {oedema|swelling}",
        "{infiltration|infiltrated white matter|water} around the <thing>",
        "{the |}{non-core|outer} {part|portion} of the abnormality",
    ),
    "none": (
        "{the |a |}{kidney|liver|heart|lung|spleen|pancreas|stomach|femur|knee|spine|hip|bladder"
        "|prostate|thyroid|colon|rib|shoulder|breast|uterus|gallbladder|aorta|lymph node|tooth}",
        "{the |}{kidney|liver|lung|bone|breast|colon|skin} {tumour|cyst|metastasis|lesion|cancer}",
        "{the |}{ventricles|lateral ventricle|skull|eyes|orbit|cerebellum|hippocampus|brainstem"
        "|pituitary|corpus callosum|thalamus|cortex|grey matter|white matter|optic nerve|scalp"
        "|sinus|healthy brain|normal tissue|background|cerebrospinal fluid|choroid plexus|vessels"
        "|arteries|carotid|dura|caudate}",
        "{the |a |an |}{haemorrhage|haematoma|bleeding|blood|infarct|stroke|ischaemia|aneurysm"
        "|abscess|calcification|fracture|thrombus|embolus|plaque|demyelination|microbleeds"
        "|hydrocephalus|meningioma of the falx|clot|contusion|malformation|shunt|electrode}",
        "{a |the |}{dog|cat|bird|horse|car|bicycle|house|tree|chair|guitar|banana|pizza|boat|phone"
        "|computer|shoe|book|river|mountain|star|moon|fish|elephant|lamp|train|cup|bottle|ball}",
        "{the weather is {fine|bad|nice}|it is raining|hello world|good morning|thank you"
        "|how are you|what time is it|the sun is shining|once upon a time|lorem ipsum}",
        "{a |the |}{red|blue|green|big|old|new|small|wooden|happy} {car|house|door|bird|dog|flower"
        "|street|table|garden|window|boat|hat}",
        "{asdf|qwerty|foo|xyz|test|nothing|none|blah|abc|123|lorem|ipsum dolor sit amet|n/a}",
        "{music|history|mathematics|football|politics|economics|poetry|cooking|travel} {class|book"
        "|lesson|news|club|}",
        "{pneumonia|cirrhosis|appendicitis|gallstones|arthritis|scoliosis|pleural effusion|asthma"
        "|diabetes|hernia|emphysema}",
    ),
}
_PLACES: dict[tuple[bool, bool], tuple[str, ...]] = {
    (False, False): ("",),
    (True, False): (
        " {in|of|within} the {X|X cerebral|X} hemisphere",
        " on the {X|X side|X side of the brain}",
        " {in|of} the X {half|side}{| of the brain}",
        ", X {side|hemisphere|}",
        " X",
        " {located|situated|lying} on the X",
    ),
    (False, True): (
        " {in|of|within} the Y {lobe|lobe|region|area}",
        ", Y",
        " {located|lying} in the Y {lobe|region}",
        " Y",
    ),
    (True, True): (
        " {in|of|within} the X Y {lobe|lobe|region|area}",
        ", X Y",
        " {in|of} the Y lobe on the X",
        " X Y",
    ),
}
"""(whether a side is named, whether a place is) -> templates; X is the side, Y the place."""
_PICK = {
    "largest": "{the |}{largest|biggest|main|dominant|larger|bigger|major|greatest"
    "|most voluminous}",
    "smallest": "{the |}{smallest|smaller|tiniest|minor|satellite|littlest|least voluminous}",
}
_PICKED = "{lesion|tumour|focus|mass|nodule|one|of the lesions|of the tumours|metastasis|part}"


def write_prompt(request: Request, rng: np.random.Generator, *, slips: float = 0.1) -> str:
    """Write a prompt that asks for exactly that.

    Args:
        request: what is asked for.
        rng: chooses the words.
        slips: probability of a slip of the keyboard.
    """
    templates = _PARTS[request.target]
    text = expand(templates[int(rng.integers(len(templates)))], rng, _WORDS)
    side, site = request.side, request.site
    before = side and not site and rng.random() < 0.25
    places = _PLACES[side is not None, site is not None]
    place = places[int(rng.integers(len(places)))]
    where = expand(place.replace("X", side or "").replace("Y", site or ""), rng, _WORDS)
    if before:
        text = _insert(text, expand(f"{side}{{|-sided| hemispheric}}", rng))
    elif where:
        text = f"{text}{'' if where.startswith(',') else ' '}{where}"
    if request.pick:
        which = expand(_PICK[request.pick], rng)
        text = (
            f"{text} of {which} {expand(_PICKED, rng)}"
            if rng.random() < 0.5
            else _insert(text, which.removeprefix("the "))
        )
    if rng.random() < 0.15:
        verb = expand("{segment|show me|find|please segment|mark|where is|outline|delineate}", rng)
        text = f"{verb} {text}"
    if rng.random() < 0.5:
        for british, american in AMERICAN:
            text = text.replace(british, american)
    style = rng.random()
    text = text.capitalize() if style < 0.2 else text.lower() if style < 0.4 else text
    return with_slips(text, rng) if rng.random() < slips else text


def _insert(text: str, adjective: str) -> str:
    """Return a phrase with an adjective, after its article if it has one."""
    if text.startswith("the "):
        return f"the {adjective} {text[4:]}"
    return f"{adjective} {text}"
