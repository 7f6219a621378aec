"""Many ways to say a fact of a tumour, to deny it, and to leave it out.

Texts for training encoders and networks that are to obey text: negations of local scope, hedges,
abbreviations, both spellings, slips of the keyboard, fragments and sentences about other things.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from clipseg3d.texts.facts import COMPRESSED_SHARE, SHIFTED_MM, SPARED_SHARE, TumourFacts

Site = Literal["frontal", "parietal", "temporal", "occipital", "insular", "deep", "cerebellar"]
SITES: tuple[Site, ...] = (
    "frontal", "parietal", "temporal", "occipital", "insular", "deep", "cerebellar",
)  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """What a text says; None means that it does not say.

    Attributes:
        enhancement: ``none``, a kind of it, or ``yes`` without a kind.
        necrosis: whether there is any.
        oedema: ``none``, its extent, or ``present`` without an extent.
        foci: ``single`` or ``multiple``.
        side: of the patient.
        sites: lobes and other places that are named; empty if none is.
        crosses_midline: whether the tumour reaches the other hemisphere.
        compressed: whether the ventricles are compressed.
        shifted: whether the midline is.
    """

    enhancement: Literal["none", "spots", "patches", "rim", "solid", "yes"] | None = None
    necrosis: bool | None = None
    oedema: Literal["none", "limited", "moderate", "extensive", "present"] | None = None
    foci: Literal["single", "multiple"] | None = None
    side: Literal["left", "right", "both"] | None = None
    sites: tuple[Site, ...] = ()
    crosses_midline: bool | None = None
    compressed: bool | None = None
    shifted: bool | None = None


def statement_of(facts: TumourFacts) -> Statement:
    """Return all that can be said of a patient.

    Necrosis is left out where an expert may see it either way: in a core that is not a rim and
    enhances in part.
    """
    loss, shift = facts.ventricle_loss, facts.midline_shift_mm
    certain = facts.necrosis or facts.enhancement in ("none", "rim", "solid")
    return Statement(
        enhancement=facts.enhancement,
        necrosis=facts.necrosis if certain else None,
        oedema=facts.oedema_extent if facts.oedema_ml > 0 else "none",
        foci="multiple" if facts.foci > 1 else "single",
        side=facts.side,
        sites=(facts.lobe,),
        crosses_midline=facts.crosses_midline,
        compressed=None
        if loss is None or SPARED_SHARE <= loss < COMPRESSED_SHARE
        else loss >= COMPRESSED_SHARE,
        shifted=None
        if shift is None or SHIFTED_MM / 3 <= shift < SHIFTED_MM
        else shift >= SHIFTED_MM,
    )


WORDS = {
    "lesion": "{lesion|lesion|tumour|tumour|mass|mass|neoplasm|glioma|abnormality|process|growth"
    "|mass lesion|space-occupying lesion|glioblastoma|metastasis|high-grade glioma"
    "|low-grade glioma|intra-axial mass|lesion area|tumour mass|GBM}",
    "lesions": "{lesions|lesions|tumours|tumours|masses|foci|metastases|nodules|deposits|gliomas"
    "|abnormalities|tumour foci|lesion areas|growths|neoplasms|space-occupying lesions}",
    "which": "{which|that|and it|and this|, and this one}",
    "core": "{core|centre|central part|interior|middle|tumour core|central portion|inner part}",
    "see": "{seen|observed|present|visible|noted|found|identified|evident|apparent|detected"
    "|demonstrated|appreciated|depicted|shown|recognised|encountered}",
    "shows": "{shows|demonstrates|exhibits|displays|reveals|has|presents with|presents|features"
    "|is characterised by|contains}",
    "after": "{after contrast|after gadolinium|after contrast administration|post contrast"
    "|post-contrast|following contrast|on post-contrast T1|on T1 after contrast|on T1+C"
    "|after Gd|following gadolinium injection|after intravenous contrast|on contrast-enhanced T1"
    "|on T1ce|on postgadolinium images|on T1 with gadolinium|after injection of contrast medium"
    "|on contrast-enhanced images|on the T1 contrast series}",
    "enh": "{enhancement|enhancement|enhancement|contrast enhancement|contrast enhancement"
    "|pathological enhancement|abnormal enhancement|uptake of contrast|contrast uptake"
    "|gadolinium uptake|Gd enhancement|uptake of contrast medium|contrast agent uptake"
    "|accumulation of contrast|enhancing tissue|enhancing tumour|enhancing component"
    "|enhancing portion|enhancing tumour tissue|enhancing elements|CE|gadolinium enhancement"
    "|post-contrast enhancement|parenchymal enhancement|T1 enhancement}",
    "enhances": "{enhances|takes up contrast|takes up gadolinium|lights up|shows enhancement"
    "|accumulates contrast|becomes bright|picks up contrast|brightens|enhances with contrast"
    "|demonstrates enhancement|is enhancing|shows contrast uptake|gains signal}",
    "enhance": "{enhance|take up contrast|take up gadolinium|light up|show enhancement"
    "|accumulate contrast|become bright|pick up contrast|brighten|demonstrate enhancement"
    "|gain signal|take up the contrast agent|change after contrast}",
    "enhancing": "{enhancing|contrast-enhancing|gadolinium-enhancing|bright|hyperintense"
    "|contrast-avid|Gd-enhancing}",
    "rim": "{rim|ring|peripheral rim|border|margin|wall|outer shell|capsule-like rim|edge"
    "|periphery|ring-like border|annular rim|band along the margin|circumference|outer wall}",
    "ringlike": "{ring-like|rim-like|ring|rim|peripheral|annular|circumferential|marginal"
    "|ring-shaped|circular|thick ring|thin ring|irregular ring|irregular rim|thick rim-like"
    "|thin peripheral|thick-walled|thin-walled|garland-like|nodular ring}",
    "degree": "{|||avid|strong|intense|marked|vivid|clear|bright|definite|obvious|pronounced"
    "|brisk|conspicuous|prominent|moderate|mild|faint|subtle|slight|weak|discrete}",
    "necrosis": "{necrosis|necrosis|necrosis|central necrosis|necrotic tissue|necrotic areas"
    "|a necrotic core|tissue breakdown|necrotic change|cystic necrosis|intratumoral necrosis"
    "|areas of necrosis|necrotic parts|tumour necrosis|a necrotic centre|liquefied necrotic tissue"
    "|necrotic debris|tumour breakdown|colliquation|a necrotic cavity}",
    "nonecrosis": "{necrosis|necrosis|central necrosis|necrotic tissue|necrotic areas"
    "|necrotic core|tissue breakdown|necrotic change|cystic necrosis|intratumoral necrosis"
    "|necrotic component|necrotic parts|tumour necrosis|necrotic centre|cystic or necrotic change"
    "|necrotic degeneration|cavitation}",
    "necrotic": "{necrotic|necrotic|centrally necrotic|cystic-necrotic|partly necrotic"
    "|extensively necrotic|necrotising|largely necrotic}",
    "oedema": "{oedema|oedema|oedema|surrounding oedema|vasogenic oedema|perilesional oedema"
    "|peritumoural oedema|perifocal oedema|white matter oedema|swelling|surrounding swelling"
    "|FLAIR hyperintensity|peritumoral T2 signal|swelling of the white matter|adjacent oedema"
    "|brain swelling|surrounding T2/FLAIR hyperintensity|FLAIR signal abnormality"
    "|associated oedema|high FLAIR signal around the <lesion>|brain oedema|peritumoral edema}",
    "limited": "{limited|little|mild|minimal|slight|small|scant|minor|modest|sparse|discrete"
    "|only a little|only mild|only slight|a small amount of|a thin band of|a narrow halo of"
    "|trace|sparing|a minimal amount of|a bit of|a small rim of|very little|low-grade|a trace of"
    "|localised|circumscribed}",
    "moderate": "{moderate|a moderate amount of|medium|intermediate|moderately sized|some moderate"
    "|a fair amount of|moderately extensive}",
    "extensive": "{extensive|marked|severe|pronounced|large|massive|widespread|considerable"
    "|significant|prominent|substantial|broad|florid|a large amount of|a large area of|heavy"
    "|abundant|diffuse|confluent|very extensive|quite extensive|far-reaching|excessive"
    "|disproportionate|large-scale|striking|gross|a wide area of|voluminous}",
    "none": "{no|no|no|no|without any|no evidence of|no sign of|no signs of|without|absent|nil"
    "|no definite|no clear|no obvious|no appreciable|no significant|no convincing|no demonstrable"
    "|no visible|lack of|absence of|negative for|free of|not any|no discernible|zero|devoid of"
    "|no detectable|no relevant|no radiological sign of|no particular}",
    "No": "{no|no|no|no evidence of|no sign of|no signs of|no definite|no clear|no obvious"
    "|no appreciable|no convincing|no demonstrable|no visible|no discernible|no detectable"
    "|not any|no indication of|no suggestion of|no focus of|no trace of|no area of}",
    "notseen": "{is not <see>|is not <see>|cannot be <see>|could not be <see>|is absent|is lacking"
    "|is missing|was not <see>|is nowhere <see>|does not occur|is not a feature"
    "|is not to be <see>|has not developed|is not definitely <see>|cannot be made out"
    "|cannot be demonstrated|is not shown|is not detectable|is ruled out|is excluded}",
    "probably": "{|||||||probably|likely|possibly|presumably|most likely|apparently|suspected}",
    "side_left": "{left|left|left|left|left-sided|L|left hemispheric}",
    "side_right": "{right|right|right|right|right-sided|R|right hemispheric}",
    "frontal": "{frontal|frontal|frontal|prefrontal|superior frontal|inferior frontal"
    "|frontobasal|middle frontal|frontopolar|precentral|medial frontal}",
    "parietal": "{parietal|parietal|parietal|superior parietal|inferior parietal|postcentral"
    "|high parietal|precuneus}",
    "temporal": "{temporal|temporal|temporal|medial temporal|anterior temporal|temporopolar"
    "|mesial temporal|posterior temporal|hippocampal|middle temporal}",
    "occipital": "{occipital|occipital|occipital|medial occipital|occipital pole|calcarine"
    "|lateral occipital|cuneus}",
    "insular": "{insular|insular|opercular}",
    "deep": "{thalamic|thalamus|basal ganglia|deep grey matter|callosal|brainstem|pontine|thalamic"
    "|lentiform|periventricular deep|striatal}",
    "cerebellar": "{cerebellar|cerebellar|posterior fossa|vermian|infratentorial}",
}
"""Word -> a template for it; see :func:`expand`."""

_ENHANCEMENT = {
    "none": (
        "<No> <enh>{| is <see>| <after>| in the <lesion>| within the <lesion>}",
        "there is <No> <enh>{| <after>| of the <lesion>}",
        "the <lesion> does not <enhance>{| <after>| at all| in any part}",
        "the <lesion> {doesn't|did not|fails to|failed to|hardly seems to} <enhance>",
        "<enh> <notseen>",
        "{absence|lack|complete absence|total lack} of <enh>{| <after>}",
        "the <lesion> {lacks|is devoid of|is free of|is without|remains without|shows no"
        "|exhibits no|displays no|demonstrates no|has no|never shows} <enh>",
        "the <lesion> is {non-enhancing|nonenhancing|not enhancing|unenhancing|without <enh>"
        "|non enhancing|entirely non-enhancing|completely non-enhancing}",
        "{non-enhancing|nonenhancing|non-contrast-enhancing|not enhancing} <lesion>",
        "<enh>: {none|no|absent|negative|nil|not present|0}",
        "{none|no part|nothing|no portion|no component|not a single part} of the <lesion>"
        " <enhances>{| <after>}",
        "neither {nodular|solid|rim|patchy} nor {ring|diffuse|peripheral|homogeneous} <enh>"
        "{| is <see>}",
        "<after>, {nothing <enhances>|no <enh> is <see>|the <lesion> remains {dark|hypointense"
        "|unchanged|hypointense throughout|of low signal|without change}|there is <No> <enh>"
        "|no part <enhances>|the <lesion> does not <enhance>|the signal does not change}",
        "the <lesion> {stays|remains|is} {dark|hypointense|unchanged|non-enhancing|isointense}"
        " <after>",
        "without {any |appreciable |significant |}<enh>",
        "negative for <enh>",
        "{nil|zero|no} <enh>",
        "the scan is negative for <enh>",
        "<enh> could be {excluded|ruled out}",
        "contrast administration {does not change|has no effect on|brings no change in} the signal"
        " of the <lesion>",
        "no {bright|enhancing} {rim|ring|nodule|focus|part} is <see>{| <after>}",
        "the blood-brain barrier {is|appears|seems} intact{|, without enhancement}",
        "<lesion> that {does not|doesn't|fails to} <enhance>",
        "<lesion>, which {itself |}{does not <enhance>|shows no <enh>|is not enhancing}",
        "the <lesion> itself does not <enhance>",
        "<enh>{?|:} {no|none|nil}",
        "<enh> {nil|none|neg|negative}",
        "{absent|no|missing|nil} <enh>",
        "{contrast-negative|enhancement-negative|unenhanced|non-avid|Gd-negative} <lesion>",
        "the {formerly|previously|initially} enhancing <lesion> {no longer|does not any more}"
        " <enhances>",
        "<enh> has {disappeared|resolved|vanished|regressed completely|gone}",
        "{free|devoid|bare} of <enh>",
        "{apart|aside} from {vessels|normal vessels|the choroid plexus|mucosa}, nothing <enhances>",
        "{unexpectedly|surprisingly|interestingly|remarkably|as before|still}, {no <enh>"
        "|the <lesion> does not <enhance>|without <enh>}",
        "<after>, the <lesion> {stays|remains} {unenhanced|non-enhancing|dark|as it was}",
    ),
    "yes": (
        "the <lesion> <enhances>{| <after>}",
        "there is <degree> <enh>{| <after>| of the <lesion>}",
        "<degree> <enh> {is|was} <see>{| <after>| in the <lesion>}",
        "<degree> <enhancing> <lesion>",
        "<enh>: {yes|present|positive|+|<degree>}",
        "the <lesion> <shows> <degree> <enh>{| <after>}",
        "<degree> <enh>{| <after>}",
        "with <degree> <enh>",
        "<after>, the <lesion> <enhances>",
        "<after>, there is <degree> <enh>",
        "parts of the <lesion> are {clearly |}<enhancing>{| <after>}",
        "{some|heterogeneous|inhomogeneous|mixed|irregular} <enh>{| <after>}",
        "the solid {part|component|portion} <enhances>{| <after>}",
        "positive for <enh>",
        "<lesion> that {clearly |}<enhances>",
        "<lesion>, which <enhances> {|strongly|avidly|brightly|vividly|a little|only slightly}",
        "<enh>{?|:} yes{|, <degree>}",
        "<enh> {yes|pos|positive|present|+}",
        "{Gd-positive|Gd+|CE+|contrast-positive|contrast-avid|enhancement-positive} <lesion>",
        "{new|residual|recurrent|increasing|progressive|persistent} <enh>{| is <see>}",
        "the {formerly|previously} non-enhancing <lesion> now <enhances>",
        "a {blush|trace|hint|faint blush|little} of <enh>{| is <see>| can be made out}",
        "<degree> <enh> {cannot be overlooked|is undeniable|cannot be missed}",
        "{not only|both} the rim {but also|and} the nodule <enhance>",
        "<lesion> {with|showing|displaying|demonstrating} <degree> <enh>",
    ),
    "spots": (
        "{a few|few|several|isolated|scattered} {small|tiny|punctate|minute} {spots|foci|dots"
        "|islands} {of <enh>|that <enhance>|<enhance> <after>}",
        "only {small|tiny|minor|minimal} {parts|areas|spots|foci} {of it |of the <core> |}"
        "<enhance>",
        "most of the <core> does not <enhance>; only {small|tiny} {parts|areas|spots} do",
        "{punctate|spotty|pinpoint|minimal focal|small nodular|dot-like|speckled} <enh>{| <after>}",
        "<enh> is {confined|limited|restricted} to {small areas|a few spots|tiny foci|one small"
        " nodule} of the <core>",
        "{minimal|scant|very little|hardly any} <enh> in {small spots|tiny foci}",
        "<after>, {a few|some} {small|tiny} {spots|foci} <enhance>",
    ),
    "patches": (
        "{patchy|patchlike|blotchy|flocculent|geographic|multifocal patchy|heterogeneous patchy"
        "|irregular patchy} <enh>{| <after>| of the <lesion>}",
        "parts of the <core> <enhance>, in patches",
        "{patches|areas|islands|zones} of <enh>{| are <see>| within the <lesion>}",
        "<enh> is {patchy|in patches|blotchy}",
        "<after>, {patches|patchy areas} of the <lesion> <enhance>",
        "the <lesion> <enhances> in patches",
    ),
    "rim": (
        "{a|a|a|an irregular} {thick|thin||broad|narrow|smooth|nodular|complete|} <rim> of <enh>"
        "{| surrounds the <core>| is <see>| encircles the <lesion>}",
        "<ringlike> <enh>{| <after>| of the <lesion>| around the <core>}",
        "{ring-enhancing|rim-enhancing|ring enhancing|peripherally enhancing|rim enhancing"
        "|marginally enhancing} <lesion>",
        "the <rim> {of the <lesion> |}<enhances>{| <after>}",
        "<after>, the <lesion> <enhances> {along its margin|at its border|at the periphery"
        "|in a ring|along the rim|at its edge|circumferentially|only at the edge}",
        "the <lesion> <shows> <ringlike> <enh>{| <after>}",
        "<degree> <enh> {along|of|at|around} {its|the} <rim>",
        "<enh> {is|appears} {ring-like|ring-shaped|peripheral|annular|rim-like|marginal}",
        "an <enhancing> <rim> {is <see>|surrounds the <core>|encloses the <core>}",
        "<enhancing> <rim>{| around the <core>}",
        "{the <core> is|centre} {dark|hypointense} and the <rim> {is <enhancing>|<enhances>}",
    ),
    "solid": (
        "{solid|homogeneous|uniform|diffuse|complete|even|solid nodular|compact} <enh>"
        "{| <after>| of the <lesion>| of the <core>}",
        "the {whole|entire|complete} {<core>|<lesion>} <enhances>{| <after>}",
        "the <lesion> <enhances> {solidly|homogeneously|uniformly|throughout|completely|evenly"
        "|as a whole}{| <after>}",
        "{solidly|homogeneously|uniformly|diffusely} enhancing <lesion>",
        "<after>, {the whole <core>|all of the <lesion>} <enhances>",
        "<enh> is {solid|homogeneous|uniform|diffuse}",
    ),
}
_ENHANCEMENT_OF_MANY = {
    "none": (
        "{several|two|multiple|many} <lesions>, {none|neither} of which <enhances>",
        "{none|neither} of the <lesions> <enhances>{| <after>}",
        "the <lesions> do not <enhance>",
        "{non-enhancing|unenhancing|nonenhancing} <lesions>",
        "<lesions> without <enh>",
    ),
    "yes": (
        "the <lesions> <enhance>",
        "{all|both|each} of the <lesions> <enhance>",
        "<enhancing> <lesions>",
        "{several|two|multiple|many} <lesions> with <degree> <enh>",
    ),
    "rim": (
        "{ring-enhancing|rim-enhancing} <lesions>",
        "the <lesions> show <ringlike> <enh>",
    ),
    "solid": (
        "{homogeneously|solidly} enhancing <lesions>",
        "the <lesions> <enhance> {homogeneously|solidly}",
    ),
}
"""Kind of enhancement -> clauses that also say that there are several lesions."""
_NECROSIS_OF_MANY = {
    True: (
        "<lesions> with {necrotic centres|central necrosis|dead cores|necrotic cores}",
        "{partly|partially|largely|centrally} necrotic <lesions>",
        "the {larger|largest} of the <lesions> is necrotic",
    ),
    False: (
        "<lesions> without <nonecrosis>",
        "{none|neither} of the <lesions> is necrotic",
        "the <lesions> are not necrotic",
    ),
}
_NECROSIS = {
    True: (
        "<necrosis> is <see>{| within the <lesion>| in the <core>| inside| centrally}",
        "{areas|zones|pockets|foci|regions|a large area} of necrosis{| are <see>| in the <core>}",
        "the <core> is <necrotic>",
        "the <core> {contains|harbours|shows|includes|holds|has} <necrosis>",
        "there is <probably> <necrosis>{| inside the <lesion>| within it}",
        "<necrotic> <lesion>",
        "{a|one} {dark|hypointense|fluid-filled|cystic} <core> {due to|from|in keeping with"
        "|compatible with|consistent with|suggesting|representing} necrosis",
        "with <necrosis>",
        "necrosis: {yes|present|positive|+|central}",
        "necrosis is <see> inside the <lesion> as an area that does not take up contrast",
        "the <core> {does not enhance|is non-enhancing}, {suggesting|consistent with"
        "|representing|compatible with|as in|due to} necrosis",
        "necrosis is primarily located at the <core>, {presenting|displayed|visible} as {low"
        "|mixed} signal",
        "non-enhancing necrotic <core>",
        "{cystic|liquefied|fluid-like} necrotic {change|areas|component} {centrally|inside"
        "|within the <lesion>}",
        "the <lesion> has {undergone necrosis|broken down centrally|become necrotic}",
        "the <lesion> is <necrotic>",
        "necrosis{?|:} yes{|, centrally|, inside}",
        "necrosis {yes|pos|positive|present|+}",
        "{dead|avascular|fluid-signal|liquefied|broken-down|devitalised|cystic-necrotic} <core>",
        "<lesion> {with|showing|containing} <necrosis>",
        "{partly|partially|largely|mostly|extensively|focally} necrotic <lesion>",
        "<lesion>, which {is|has become|appears} necrotic {centrally|inside|in its <core>|}",
        "{new|increasing|progressive|residual} <necrosis>",
        "<lesion> that has {undergone necrosis|broken down|died off centrally}",
    ),
    False: (
        "<No> <nonecrosis>{| is <see>| within the <lesion>| in the <core>}",
        "there is <No> <nonecrosis>",
        "<nonecrosis> <notseen>",
        "the <lesion> is {not necrotic|non-necrotic|free of <nonecrosis>|without <nonecrosis>"
        "|solid without necrosis|solid throughout|entirely viable|homogeneous without necrosis}",
        "the <lesion> {lacks|is devoid of|shows no|has no|contains no|is spared from} <nonecrosis>",
        "{non-necrotic|nonnecrotic|solid, non-necrotic|viable} <lesion>",
        "necrosis: {none|no|absent|negative|nil}",
        "{absence|lack} of <nonecrosis>",
        "without {any |}<nonecrosis>",
        "no {part|portion|area} of the <lesion> is necrotic",
        "the <core> is {not necrotic|solid|viable|without breakdown}",
        "neither cysts nor necrosis {are <see>|is <see>|within the <lesion>}",
        "negative for <nonecrosis>",
        "nothing {suggests|points to|looks like} necrosis",
        "the <lesion> has not {broken down|become necrotic|undergone necrosis}",
        "{nil|zero} necrosis",
        "necrosis{?|:} {no|none|nil}",
        "necrosis {nil|none|neg|negative}",
        "{free|devoid} of <nonecrosis>",
        "<lesion>, which is not necrotic",
        "no {frank|obvious|overt|gross|macroscopic|large} <nonecrosis>",
        "{vital|viable|homogeneous|solid} {tissue|tumour|<lesion>} throughout",
        "<nonecrosis> has {resolved|disappeared}",
        "necrosis {is not|isn't} a feature",
    ),
}
_OEDEMA = {
    "none": (
        "<No> <oedema>{| is <see>| around it}",
        "there is <No> <oedema>",
        "<oedema> <notseen>",
        "without {any |}<oedema>",
        "the <lesion> {lacks|is devoid of|shows no|has no|causes no|is without|elicits no}"
        " <oedema>",
        "{absence|lack} of <oedema>",
        "oedema: {none|no|absent|nil|negative}",
        "the {surrounding|adjacent} {brain|white matter|tissue|parenchyma} is {normal|not swollen"
        "|free of oedema|unremarkable|spared|preserved}",
        "nil <oedema>",
        "negative for <oedema>",
        "the <lesion> is not surrounded by <oedema>",
        "sharply {marginated|defined} <lesion> without <oedema>",
        "oedema{?|:} {no|none|nil}",
        "oedema {nil|none|neg|negative}",
        "oedema has {resolved|cleared|disappeared|regressed completely}",
        "free of <oedema>",
        "<lesion>, which is not surrounded by oedema",
    ),
    "present": (
        "<oedema> is <see>{| around the <lesion>| mainly around it}",
        "there is <oedema>{| around the <lesion>}",
        "with <oedema>",
        "oedema: {yes|present|+}",
        "the <lesion> is surrounded by <oedema>",
        "oedema {is mainly concentrated|lies|is located} around the <lesion>",
        "the {surrounding|adjacent} {brain|white matter|tissue} is {swollen|oedematous}",
        "associated <oedema>",
        "<oedema> appears as {high|bright} signal on FLAIR",
        "oedema{?|:} yes",
        "oedema {yes|pos|positive|present|+}",
        "oedema {can be seen|is there|persists|is unchanged}",
        "surrounding <oedema>",
        "<lesion> {and|with} {its |}{perifocal |surrounding |}oedema",
    ),
}
_EXTENT = (
    "<X> <oedema>{| is <see>| around the <lesion>| surrounds the <lesion>| on FLAIR}",
    "there is <X> <oedema>{| around it| around the <lesion>}",
    "with <X> <oedema>",
    "the <lesion> is surrounded by <X> <oedema>",
    "<oedema> is <x>{|, presenting as high signal on FLAIR|, bright on T2 and FLAIR}",
    "the <oedema> is {rather|quite|fairly||very} <x>",
    "oedema: <x>",
    "the <lesion> causes <X> <oedema>",
    "<X> <oedema> {extends|spreads} {from|around} the <lesion>",
    "the {surrounding|adjacent} white matter shows <X> <oedema>",
    "<lesion> with <X> <oedema>",
    "<lesions> with <X> <oedema>",
    "oedema{?|:} <x>",
    "<x> oedema",
    "oedema {remains|persists|is still|has become} <x>",
    "<lesion>, the <oedema> {of which is|being} <x>",
)
_EXTENTS = {
    "limited": (
        "oedema is {confined|limited|restricted} to a {narrow|thin|small} {band|rim|halo|zone}",
        "<oedema> {barely|hardly} {extends beyond|exceeds|surrounds} the <lesion>",
        "the {surrounding|adjacent} white matter is {hardly|barely|only slightly|minimally}"
        " {swollen|affected|oedematous}",
        "oedema is {not extensive|not marked|not pronounced|scant|minimal}",
        "the <lesion> is {hardly|barely|only slightly} surrounded by oedema",
        "oedema is {limited|confined|restricted} to the {immediate|adjacent|direct|nearest}"
        " {margin|surroundings|neighbourhood|vicinity|edge|white matter}",
        "a {thin|narrow|small|fine} {seam|fringe|band|halo|collar|rim|strip} of oedema",
        "{hardly any|next to no|barely any|scarcely any|not much|only little|just a little}"
        " <oedema>",
        "oedema is {disproportionately|surprisingly|remarkably|relatively} {small|limited|mild}",
    ),
    "moderate": (
        "oedema is neither {mild|limited|minimal} nor {marked|extensive|severe}",
        "the {surrounding|adjacent} white matter is moderately {swollen|oedematous}",
    ),
    "extensive": (
        "{much|most|large parts} of the {hemisphere|lobe|white matter} {is|are} {swollen"
        "|oedematous|affected by oedema|involved by oedema}",
        "oedema {extends|spreads|reaches} {far|widely} {into the white matter|beyond the <lesion>"
        "|through the hemisphere|into adjacent lobes}",
        "severe swelling of the surrounding {tissue|tissues|brain|white matter}",
        "the <lesion> is surrounded by {a wide|a broad|a large} {zone|area|halo} of oedema",
        "the {surrounding|adjacent} white matter is {severely|markedly|heavily|massively} {swollen"
        "|oedematous}",
        "{a lot of|lots of|plenty of|much|a great deal of|a sea of|no end of|+++} <oedema>",
        "oedema {+++|++|plenty|a lot}",
        "oedema is disproportionately {large|extensive|marked}",
        "oedema involves {most|much|the whole|all} of the {lobe|hemisphere}",
    ),
}
_PLACE = (
    "the <lesion> {is|lies|is located|is centred|is situated|sits} in <place>",
    "{a|one} <lesion> {is <see>|lies|is located} in <place>",
    "there is a <lesion> in <place>",
    "<place> {contains|harbours|shows|is occupied by|is infiltrated by} a <lesion>",
    "<adjective> <lesion>",
    "a <adjective> <lesion>{| is <see>}",
    "<lesion> in <place>",
    "<lesion>, <adjective>",
    "the lesion area is in <place> with {mixed|uneven|heterogeneous} signals",
    "location: <adjective>",
    "<lesion> {involving|affecting|occupying|within|of|infiltrating} <place>",
    "signal abnormality {in|of} <place>",
    "<place>: <lesion>",
)
_PLACES_OF_MANY = (
    "<lesions> {are <see>|lie|are located} in <place>",
    "there are {several|two|multiple|three|many} <lesions> in <place>",
    "{several|two|multiple|three|many} <lesions> in <place>",
    "<adjective> <lesions>",
    "{several|two|multiple|multifocal} <adjective> <lesions>",
    "<place>: {several|multiple|two} <lesions>",
    "<lesions>, <adjective>",
)
_FOCI = {
    "single": (
        "{a|one} {single|solitary|sole} <lesion>",
        "{single|solitary|unifocal} <lesion>{| is <see>}",
        "the <lesion> is {solitary|single|unifocal}",
        "{no|no other|no further|no additional|no second} {satellite|lesion|focus|tumour|mass"
        "|satellite lesion|satellite nodule} {is <see>|elsewhere|in the remaining brain}",
        "only {one|a single} {lesion|focus|mass} is <see>",
        "there is {just|only} one {lesion|focus|tumour|mass}",
        "no {multifocality|multifocal disease|satellites|satellite lesions|further lesions"
        "|other foci}",
        "number of lesions: {1|one}",
        "without {satellites|satellite lesions|further foci|a second lesion}",
        "{unifocal disease|solitary finding}",
        "the <lesion> is the only one",
        "it is {solitary|single|the only lesion}",
        "<lesion>, {one|single} in number",
        "{solitary|single}",
        "single {1|2|3} cm <lesion>",
        "{nothing suggests|no suspicion of|no hint of} {multifocality|further lesions"
        "|a second lesion}",
        "not {multiple|multifocal|multicentric}",
        "{solitary|single} <lesion> without {haemorrhage|calcification|shift}",
    ),
    "multiple": (
        "{two|three|several|multiple|many|numerous|a few|2|3} {separate |distinct |discrete |}"
        "{lesions|foci|masses|tumours|nodules|metastases}{| are <see>}",
        "{multifocal|multicentric} {disease|glioma|tumour|lesions|process|glioblastoma}",
        "the <lesion> {consists of|comprises|is made up of} {two|three|several|multiple}"
        " {separate |}{foci|parts|nodules}",
        "{a|one} {satellite|second lesion|second focus|satellite nodule|satellite lesion"
        "|further focus|second, smaller lesion|daughter lesion|additional focus} is <see>"
        "{| nearby}",
        "there {are|is more than one|are at least two} {lesions|foci|masses}",
        "besides the {main|dominant|larger} <lesion>, {there is|one sees} {another|a second"
        "|a smaller|a satellite} {one|lesion|focus|nodule}",
        "the disease is {multifocal|multicentric}",
        "number of lesions: {2|3|two|three|several}",
        "with {satellites|satellite lesions|a satellite|further foci|a second focus}",
        "{not solitary|more than one lesion}",
        "suggesting the presence of multiple lesions",
        "{several|multiple|two|three|many|scattered|innumerable|various} {small |larger |}"
        "<lesions>",
        "<lesions>{| are <see>| in the brain}",
        "{small|round|irregular|scattered|separate} <lesions>",
        "{additional|further|other|more} {smaller |small |}<lesions>{| elsewhere| nearby}",
        "the larger of the {two|three} <lesions>",
        "all <lesions>",
        "each of the <lesions>",
        "both <lesions>",
    ),
}
_FLAGS: dict[str, dict[bool, tuple[str, ...]]] = {
    "crosses_midline": {
        True: (
            "the <lesion> {crosses|extends across|reaches beyond} the midline",
            "{extension|growth} across the {midline|corpus callosum}",
            "the abnormal signal extends across the midline",
        ),
        False: (
            "the <lesion> {stays|remains} on one side",
            "the <lesion> does not {cross|reach} the midline",
            "no {extension|growth} across the midline",
        ),
    },
    "compressed": {
        True: (
            "ventricular compression is present",
            "the {lateral ventricle|ventricles|ventricular system} {is|are} {compressed|effaced"
            "|narrowed|deformed}",
            "the <lesion> compresses the {ventricles|lateral ventricle|ventricular system}",
            "{marked |mild |slight ||}mass effect{| on the ventricles}",
            "effacement of the {sulci|ventricle|lateral ventricle}",
        ),
        False: (
            "no ventricular compression{| is observed}",
            "the ventricles are {not compressed|of normal size|unremarkable|normal}",
            "no {significant |}mass effect",
            "no hydrocephalus",
        ),
    },
    "shifted": {
        True: (
            "the midline is {shifted|displaced|deviated}{| away from the <lesion>}",
            "midline {shift|displacement|deviation}{| is present| of several mm}",
            "midline structures are displaced to the opposite side",
            "midline shift {of |}{3|5|7|8} mm to the {left|right}",
        ),
        False: (
            "{there is |}no midline {shift|displacement|deviation}",
            "midline structures are in {their place|the midline}",
            "the midline is {not shifted|preserved|maintained}",
            "without midline shift",
        ),
    },
}
_OTHER = (
    "no {haemorrhage|bleeding|blood products|calcification|calcifications|hydrocephalus"
    "|restricted diffusion|infarct|infarction|fracture|leptomeningeal spread|dural contact}",
    "no {acute |}{haemorrhage|ischaemia|stroke|abscess} is <see>",
    "{the skull|the calvarium|the orbits|the sinuses|mastoid air cells|the posterior fossa"
    "|the cerebellum|vessels} {is|are} {normal|unremarkable|clear|free}",
    "{small|minor|some} {haemorrhage|blood products|calcification|calcifications|microbleeds}"
    " {is|are} <see>",
    "{diffusion is restricted|restricted diffusion in the solid part|high rCBV|raised perfusion}",
    "{mild|some|moderate} {atrophy|small vessel disease|white matter changes|sinus thickening}",
    "the signal is {mixed|heterogeneous|uneven|low on T1 and high on T2}",
    "{patient|status} {before surgery|after biopsy|under steroids|post biopsy|after radiotherapy}",
    "{clinical|neurosurgical} correlation {is advised|recommended}",
    "{compared|comparison} with the {prior|previous} {study|examination|MRI}, no {change|progress}",
    "{MRI|MR imaging|the examination} of the {brain|head|neurocranium}{| with contrast}",
    "{flow voids|the major vessels} are {preserved|patent}",
    "{with|showing} {spotty|speckled|punctate} high signal areas on T2",
    "the {margins|borders} are {ill-defined|sharp|indistinct|irregular|well circumscribed}",
    "the {cortex|grey matter} is {involved|thickened|preserved}",
    "{technique|sequences|protocol}: {T1 before and after contrast"
    "|T1, T2, FLAIR, T1 with gadolinium|axial T2, FLAIR, DWI and T1 pre and post contrast"
    "|3 T, T1, T2, FLAIR and T1 post contrast}",
    "{history|clinical|indication|question}: {seizure|headache|follow-up|first seizure|aphasia"
    "|hemiparesis|known glioma|restaging|suspected tumour}",
    "{enhancing|contrast-filled} {vessels|veins|dura|mucosa|choroid plexus|pituitary|meninges} as"
    " {normal|expected|usual}",
    "normal {enhancement of|contrast in} the {vessels|veins|dural sinuses|choroid plexus|pituitary"
    "|nasal mucosa|venous sinuses}",
    "no {enhancement|abnormal enhancement} of the {dura|cranial nerves|ventricular wall|ependyma}",
    "{shunt|drain|catheter|craniotomy|burr hole} on the {left|right}",
    "an old {infarct|lacune|bleed|scar} on the {left|right}",
    "{perfusion is|rCBV is|ADC is} {low|raised|elevated|reduced|normal}",
    "spectroscopy shows {raised choline|a choline peak|low NAA|a lactate peak}",
    "{uncal|subfalcine|transtentorial} herniation",
    "{the basal cisterns|cisterns|sulci} are {narrowed|effaced|free|open}",
    "T2-FLAIR mismatch",
    "{without|no} {haemorrhage|calcification|diffusion restriction}, {without|no} {calcification"
    "|bleeding|restricted diffusion|blood products}",
    "{stable|unchanged|progressive|new} {appearance|finding|since last year|compared with before}",
    "{lymphoma|glioma|metastasis|abscess|glioblastoma} {is likely|is more likely|must be considered"
    "|is the first differential}",
    "{biopsy|resection|surgery|follow-up in three months} {is recommended|is planned|was done}",
    "signs of {raised pressure|hydrocephalus} are {absent|present}",
    "size {about |approximately |}{3|4|5|2} {x 4 |x 3 |}{cm|centimetres}",
)

_UNKNOWN = {
    "enhancement": (
        "<enh> {cannot be|could not be|can not be|was not|is not} {assessed|judged|evaluated"
        "|determined|commented on|assessable}",
        "{contrast|gadolinium} was not {given|administered|injected}",
        "no {contrast|gadolinium} was {given|administered|injected}",
        "{unenhanced|non-contrast|plain|native} {study|scan|examination|MRI|series}{| only}",
        "post-contrast images are {missing|not available|nondiagnostic|degraded by motion|pending}",
        "{whether|if} the <lesion> <enhances> {is unknown|is unclear|remains open}",
        "<enh>{?|:} {not assessed|unknown|n/a|not known|pending|unclear}",
        "contrast-enhanced {imaging|MRI|series} {is recommended|should follow|to follow}",
        "is there <enh>{?| or not?}",
        "question of <enh>{| to be answered}",
        "T1 with contrast {not acquired|not done|failed|was not possible}",
        "no {comment|statement|information} on <enh>",
        "contrast {allergy|injection failed|refused|contraindicated}",
    ),
    "necrosis": (
        "<nonecrosis> {cannot be|could not be|was not} {assessed|judged|evaluated|determined}",
        "{whether|if} there is necrosis {is unknown|is unclear|remains open|cannot be said}",
        "necrosis{?|:} {not assessed|unknown|n/a|unclear}",
        "no {comment|statement} on necrosis",
        "is there necrosis?",
    ),
    "oedema": (
        "<oedema> {cannot be|could not be|was not} {assessed|judged|evaluated}",
        "FLAIR {not acquired|is missing|was not done|is degraded}",
    ),
}
"""Clauses that name a fact and do not say it."""

_REFERENCE = re.compile(r"<([\w]+)>")
_CHOICE = re.compile(r"\{([^{}]*)\}")
AMERICAN = (
    ("oedema", "edema"),
    ("umour", "umor"),
    ("entre", "enter"),
    ("haem", "hem"),
    ("grey", "gray"),
    ("ischaem", "ischem"),
    ("ising", "izing"),
    ("ised", "ized"),
)
"""Parts of words in British spelling, and in American."""


def expand(template: str, rng: np.random.Generator, words: dict[str, str] | None = None) -> str:
    """Return a text of a template: ``<name>`` stands for a word, ``{a|b}`` for one of its options.

    Args:
        template: options and words may hold others.
        rng: chooses; equal generators give equal texts.
        words: name -> template; None takes :data:`WORDS`.
    """
    words = WORDS if words is None else words
    text = template
    while (found := _CHOICE.search(text)) or (found := _REFERENCE.search(text)):
        if text[found.start()] == "<":
            chosen = words[found[1]]
        else:
            options = found[1].split("|")
            chosen = options[int(rng.integers(len(options)))]
        text = text[: found.start()] + chosen + text[found.end() :]
    return re.sub(r"\s+([,.;:])", r"\1", re.sub(r"\s+", " ", text)).strip()


def write_text(
    statement: Statement, rng: np.random.Generator, *, asides: bool = True, slips: float = 0.1
) -> str:
    """Write a text that says a statement and nothing else of its facts.

    Args:
        statement: what is said.
        rng: chooses the words, their order and the style: sentences, fragments, one noun phrase.
        asides: whether other findings may be named, or denied, and facts that nobody could tell.
        slips: probability that a text has slips of the keyboard.

    Returns:
        One to nine sentences or fragments, in English; empty for an empty statement at times.
    """
    parts = _parts(statement, rng, asides=asides)
    if rng.random() < _PHRASES:
        flags = Statement(**{name: getattr(statement, name) for name in _FLAGS})
        others = _parts(flags, rng, asides=False)
        parts = [part for part in (_noun_phrase(statement, rng), *others) if part]
    if (statement.side is None and not statement.sites) or rng.random() < 0.5:
        rng.shuffle(parts)
    for _ in range(int(rng.choice([0, 0, 0, 1, 1, 2])) if asides else 0):
        other = expand(_OTHER[int(rng.integers(len(_OTHER)))], rng)
        parts.insert(int(rng.integers(len(parts) + 1)), other)
    style = rng.random()
    if style < 0.6:
        text = " ".join(_sentence(part) for part in parts)
    elif style < 0.8:
        text = _join(parts, rng)
    else:
        text = ("; ", ", ", ". ", " - ")[int(rng.integers(4))].join(parts)
    if rng.random() < 0.5:
        for british, american in AMERICAN:
            text = text.replace(british, american).replace(
                british.capitalize(), american.capitalize()
            )
    if rng.random() < 0.1:
        text = text.lower()
    if rng.random() < slips:
        text = with_slips(text, rng)
    return text


def _parts(statement: Statement, rng: np.random.Generator, *, asides: bool) -> list[str]:
    """Return the clauses of a text, each of one or two facts.

    Every fact has a generator of its own, so that a changed fact leaves the other clauses alone.
    """
    generators = dict(zip(_ORDER, rng.spawn(len(_ORDER)), strict=True))
    parts = []
    joint = _JOINT.get((statement.enhancement, statement.necrosis))
    is_joint = joint is not None and generators["joint"].random() < 0.2
    for name in _ORDER[1:]:
        generator = generators[name]
        if is_joint and name in ("enhancement", "necrosis"):
            if name == "necrosis" and joint:
                parts.append(_choose(joint, generator))
            continue
        clause = _CLAUSES[name](statement, generator)
        if asides and not clause and name in _UNKNOWN and generator.random() < 0.15:
            clause = _choose(_UNKNOWN[name], generator)
        parts.append(clause)
    return [part for part in parts if part]


def _choose(templates: Sequence[str], rng: np.random.Generator) -> str:
    """Expand one of some templates."""
    return expand(templates[int(rng.integers(len(templates)))], rng)


_JOINT: dict[tuple[str | None, bool | None], tuple[str, ...]] = {
    ("none", False): (
        "neither necrosis nor <enh>{| is <see>}",
        "no <nonecrosis> and no <enh>",
        "no <enh> or <nonecrosis>",
        "the <lesion> shows neither <enh> nor <nonecrosis>",
        "without <enh> or <nonecrosis>",
        "<enh> and necrosis are {both |}absent",
    ),
    ("none", True): (
        "<necrosis> but no <enh>",
        "<necrotic>, {non-enhancing|not enhancing} <lesion>",
        "the <core> is <necrotic>, yet <enh> <notseen>",
        "no <enh>, although the <core> is necrotic",
    ),
    ("rim", True): (
        "<ringlike> <enh> around {a|the} {necrotic|non-enhancing necrotic|cystic-necrotic} <core>",
        "{ring-enhancing|rim-enhancing}, <necrotic> <lesion>",
        "<necrosis> surrounded by an <enhancing> <rim>",
        "necrotic <lesion> with <ringlike> <enh>",
        "<enhancing> <rim> with a necrotic <core>",
    ),
    ("rim", False): ("<ringlike> <enh> without <nonecrosis>",),
    ("solid", False): (
        "{solid|homogeneous} <enh> without <nonecrosis>",
        "solidly enhancing, {non-necrotic|not necrotic} <lesion>",
        "no <nonecrosis>; the {whole|entire} <lesion> <enhances>",
    ),
    ("yes", False): (
        "<degree> <enh> without <nonecrosis>",
        "no <nonecrosis>, but <degree> <enh>",
        "<enh> is <see>, necrosis is not",
    ),
    ("yes", True): (
        "<degree> <enh> and <necrosis>",
        "<enhancing> and <necrotic> <lesion>",
        "<enh> of the solid parts, with <necrosis>",
    ),
}
"""(enhancement, necrosis) -> clauses that say both."""


def _enhancement(statement: Statement, rng: np.random.Generator) -> str:
    kind = statement.enhancement
    if kind is None:
        return ""
    is_many = statement.foci == "multiple" and rng.random() < _OF_MANY
    many = _ENHANCEMENT_OF_MANY.get(kind) if is_many else None
    return _choose(many or _ENHANCEMENT[kind], rng)


def _necrosis(statement: Statement, rng: np.random.Generator) -> str:
    if statement.necrosis is None:
        return ""
    is_many = statement.foci == "multiple" and rng.random() < _OF_MANY
    forms = _NECROSIS_OF_MANY if is_many else _NECROSIS
    return _choose(forms[statement.necrosis], rng)


def _oedema(statement: Statement, rng: np.random.Generator) -> str:
    extent = statement.oedema
    if extent is None:
        return ""
    if extent in _OEDEMA:
        return _choose(_OEDEMA[extent], rng)
    if rng.random() < 0.25:
        return _choose(_EXTENTS[extent], rng)
    template = _choose_template(_EXTENT, rng).replace("<X>", f"<{extent}>")
    plain = {
        "limited": "{limited|mild|minimal|slight|small|scant|minor|modest|discrete}",
        "moderate": "{moderate|medium|intermediate|moderately extensive}",
        "extensive": "{extensive|marked|severe|pronounced|massive|widespread|considerable"
        "|significant|prominent|substantial|quite prominent}",
    }[extent]
    return expand(template.replace("<x>", plain), rng)


def _choose_template(templates: Sequence[str], rng: np.random.Generator) -> str:
    return templates[int(rng.integers(len(templates)))]


def _foci(statement: Statement, rng: np.random.Generator) -> str:
    return "" if statement.foci is None else _choose(_FOCI[statement.foci], rng)


def _place(statement: Statement, rng: np.random.Generator) -> str:
    """Return a clause about side and sites."""
    side, sites = statement.side, list(statement.sites)
    if side is None and not sites:
        return ""
    rng.shuffle(sites)
    adjectives = " and ".join(f"<{site}>" for site in sites)
    if rng.random() < 0.3:
        adjectives = adjectives.replace(" and ", "{-|, |/}")
    lobe = "{lobe|lobe|region|area|white matter}" if len(sites) < 2 else "{lobes|regions|areas}"
    if side == "both":
        whole = "{both hemispheres|both cerebral hemispheres|the brain bilaterally}"
        place = f"{{both|the right and left}} {adjectives} {lobe}" if sites else whole
        adjective = f"{{bilateral|bihemispheric|left and right}} {adjectives}"
        if len(sites) == 1 and sites[0] not in ("deep", "insular") and rng.random() < 0.25:
            place, adjective = f"both {sites[0]} lobes", f"bi{sites[0]}"
        elif sites == ["deep"] and rng.random() < 0.25:
            place = adjective = "{bithalamic|both thalami|bilateral basal ganglia}"
        elif sites and rng.random() < 0.15:
            place = adjective = f"left <{sites[0]}>, right <{sites[-1]}>"
        elif not sites and rng.random() < 0.3:
            place = adjective = "{butterfly|on both sides|in both halves of the brain}"
    elif side is None:
        place, adjective = f"the {adjectives} {lobe}", adjectives
    else:
        hemisphere = "{hemisphere|cerebral hemisphere|side of the brain|side|half of the brain}"
        place = f"the {side} {adjectives} {lobe}" if sites else f"the {side} {hemisphere}"
        if sites and rng.random() < 0.2:
            place = f"the {adjectives} {lobe} on the {side}"
        adjective = f"<side_{side}> {adjectives}"
    words = {**WORDS, "place": place, "adjective": adjective}
    is_many = statement.foci == "multiple" and rng.random() < 0.4
    return expand(_choose_template(_PLACES_OF_MANY if is_many else _PLACE, rng), rng, words)


def _flag(name: str) -> Callable[[Statement, np.random.Generator], str]:
    """Return what writes a clause about a fact that is true, false or not said."""

    def write(statement: Statement, rng: np.random.Generator) -> str:
        value = getattr(statement, name)
        return "" if value is None else _choose(_FLAGS[name][value], rng)

    return write


_CLAUSES: dict[str, Callable[[Statement, np.random.Generator], str]] = {
    "place": _place,
    "foci": _foci,
    "oedema": _oedema,
    "enhancement": _enhancement,
    "necrosis": _necrosis,
    **{name: _flag(name) for name in _FLAGS},
}
_ORDER = ("joint", *_CLAUSES)


_OF_MANY = 0.3
"""Share of clauses about several lesions that say so."""
_PHRASES = 0.2
"""Share of texts that are one noun phrase."""
_JOINTS = (
    ", ", "; ", ", and ", " and ", ". ", ", with ", ", while ",
    ", but ", ", yet ", ", however ", ", although ", "; nonetheless ",
)  # fmt: skip


def _noun_phrase(statement: Statement, rng: np.random.Generator) -> str:
    """Return all of a statement but the mass effect as one phrase around a noun."""
    before: list[str] = []
    after: list[str] = []
    words: dict[str, dict[Any, tuple[str, str]]] = {
        "enhancement": {
            "none": ("{non-enhancing|nonenhancing|unenhanced|unenhancing|not enhancing}",
                     "{without|with no|lacking|free of} <enh>|no <enh>|<enh> absent"),
            "rim": ("{ring-enhancing|rim-enhancing|peripherally enhancing}",
                    "{with|showing} <ringlike> <enh>|an <enhancing> <rim>"),
            "solid": ("{solidly|homogeneously|uniformly} enhancing", "solid <enh>"),
            "patches": ("{patchily|heterogeneously} enhancing", "patchy <enh>"),
            "spots": ("{minimally|spottily} enhancing", "{a few|small} spots of <enh>"),
            "yes": ("<enhancing>", "{with|showing} <degree> <enh>|<degree> <enh>"),
        },
        "necrosis": {
            True: ("<necrotic>", "{with|showing} <necrosis>|<necrosis>"),
            False: ("{non-necrotic|not necrotic|viable|solid, non-necrotic}",
                    "{without|no|with no} <nonecrosis>"),
        },
        "oedema": {
            "none": ("", "{without|no|with no} <oedema>"),
            "present": ("{oedematous|}", "{with|and} <oedema>"),
            **{extent: ("", f"{{with|and|}} <{extent}> <oedema>") for extent in _EXTENTS},
        },
    }  # fmt: skip
    for name, forms in words.items():
        value = getattr(statement, name)
        if value is None:
            continue
        short, long = forms[value]
        if short and rng.random() < 0.5:
            before.append(expand(short, rng))
        else:
            options = [option for option in _split(long) if option]
            after.append(expand(options[int(rng.integers(len(options)))], rng))
    is_many = statement.foci == "multiple"
    if statement.foci == "single":
        before.insert(0, expand("{solitary|single|unifocal}", rng))
    elif is_many and rng.random() < 0.6:
        before.insert(0, expand("{multiple|several|two|multifocal|three}", rng))
    if statement.side is not None and rng.random() < 0.5:
        side = "bilateral" if statement.side == "both" else f"<side_{statement.side}>"
        before.insert(int(rng.integers(len(before) + 1)), expand(side, rng))
    elif statement.side is not None:
        side = "both sides" if statement.side == "both" else f"the {statement.side}"
        after.insert(0, f"on {side}")
    if statement.sites:
        sites = expand(" and ".join(f"<{site}>" for site in statement.sites), rng)
        if rng.random() < 0.5:
            before.append(sites)
        else:
            after.insert(0, expand(f"in the {sites} {{lobe|region}}", rng))
    noun = expand("<lesions>" if is_many else "<lesion>", rng)
    text = " ".join([*before, noun])
    for index, part in enumerate(after):
        joint = (" ", ", ", " and ", ", ")[int(rng.integers(4))] if index else " "
        text += joint + part
    return text.strip()


def _split(template: str) -> list[str]:
    """Split a template at its outermost bars."""
    parts, depth = [""], 0
    for letter in template:
        depth += (letter == "{") - (letter == "}")
        if letter == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _join(parts: Sequence[str], rng: np.random.Generator) -> str:
    """Join clauses to one or two long sentences."""
    text = ""
    for index, part in enumerate(parts):
        joint = _JOINTS[int(rng.integers(len(_JOINTS)))]
        text = part if not index else f"{text}{joint}{part}"
    return _sentence(text)


def _sentence(part: str) -> str:
    """Return a clause with a capital and a full stop."""
    return f"{part[:1].upper()}{part[1:]}." if part else ""


def with_slips(text: str, rng: np.random.Generator) -> str:
    """Return a text in which one or two words have a slip: letters swapped, doubled or left out."""
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word.strip(".,;")) > 5]
    for index in rng.permutation(long)[: int(rng.integers(1, 3))].astype(int):
        word = words[index]
        at = int(rng.integers(1, len(word) - 2))
        words[index] = (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1 :],
        )[int(rng.integers(3))]
    return " ".join(words)
