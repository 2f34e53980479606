"""Patterns of refusals and hedging in English texts, and the function words by which English is recognised."""

from __future__ import annotations

import re

from training.describe.text.phrase_index import normalise_text

_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial|language model|large language)|\bunfortunately\b|"
    r"\bi(?:'m| am) (?:(?:just |only )?an? (?:ai|language model)|(?:very |so |really )?sorry|afraid|designed|programmed)|"
    r"\bsorry,|\bi apologi[sz]e|\bmy apologies|"
    r"\bi (?:can't|cannot|can not|won't|will not|must decline|do not feel|don't feel|am unable|am not able)\b|"
    r"\bi'm (?:unable|not able)\b|\bi (?:do not|don't) (?:see|have|know|identify|describe)\b|"
    r"\bnot (?:appropriate|ethical|possible) to\b|"
    r"\b(?:can't|cannot|can not|unable to|not able to) (?:assist|help|comply|identify|describe|determine|provide|process|"
    r"view|see the|analy[sz]e|fulfil)|"
    r"\bagainst (?:my|our|the) (?:guidelines|polic)|\bno (?:person|people|pedestrian|image) (?:is|are|can|was|were|visible|"
    r"provided|attached)|\bimage (?:does not|doesn't|is not|isn't|was not|wasn't|cannot|could not|is too)\b|"
    r"\b(?:please|could you) (?:provide|upload|share|attach)\b|\bcontent policy\b",
    re.IGNORECASE,
)
_HEDGING = re.compile(
    r"\b(?:appears?(?! (?:in|on|at|from|with|against)\b)|seems?|looks? like|looks? to be|seemingly|apparently|possibly|"
    r"probably|perhaps|maybe|presumably|likely|potentially|might|may be|may have|could be|could have|i think|i guess|"
    r"i believe|hard to (?:say|tell)|difficult to (?:say|tell|determine)|not sure|suggest(?:s|ing)?|indicat(?:es|ing)|"
    r"some (?:kind|sort) of|what (?:looks|appears|seems))\b",
    re.IGNORECASE,
)
# Sentences that address a model, not a reader: an instruction in an image or a caption that a model has copied.
_INSTRUCTION = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass|discard)\b[^.]{0,40}\b(?:instructions?|prompts?|rules?|directions?|guidelines?|"
    r"messages?|context|everything|what)\b|"
    r"\b(?:previous|prior|above|earlier|following|new|system|developer|hidden|original) (?:instructions?|prompts?|directives?)\b|"
    r"\b(?:system|developer) message\b|\b(?:the user|the assistant|the (?:ai|language) model|conversation|"
    r"end of (?:the )?(?:input|prompt|text|document))\b|\byou(?:r|rs|'re)?\b(?! can see\b)|\bplease\b|\bfrom now on\b|"
    r"\b(?:do not|don't|never|stop) (?:follow|obey|describ|answer|mention|writ|output|tell|us(?:e|ing) the)|\btranslate\b|"
    r"\bsummari[sz]e\b|\bset the [^.]{0,30}\bto\b|\brepeat after\b|\bwrite (?:a|an|the|me|in)\b|"
    r"\b(?:act|behave|respond|answer|reply) as\b|\bpretend (?:to be|that|you)\b|\bdo anything now\b|\bjailbreak|"
    r"\b(?:reply|respond|answer|output|print|write|return|repeat|say)\b[^.]{0,20}\b(?:only|exactly|nothing|verbatim|the words?|"
    r"the phrase|the text|yes|no|json|instead)\b|"
    r"\b(?:reveal|leak|show|tell|print|send|give|repeat)\b[^.]{0,20}\b(?:prompt|password|secret|api key|credentials|token)\b|"
    r"^(?:assistant|user|system|human)\s*:|<\|[a-z_]+\|>|\[/?inst\]",
    re.IGNORECASE | re.MULTILINE,
)
# Words for whoever is described.
PEOPLE = frozenset(
    "person pedestrian individual figure subject adult child teenager man woman boy girl male female lady gentleman he she they "
    "his her hers him their them it its hair skin build height age".split()
)
# Most words of an English description are among these or the words of the schema.
FUNCTION_WORDS = frozenset(
    "a about above across against all along also an and another any are around as at back be been behind below beneath "
    "beside both but by can carrying down each either front for from has have having he her his holding in inside into "
    "is it its just left length long looking medium mid more neither no not of off on one only open or other out over "
    "pair person right she short side small some standing style that the their them there these they this those three "
    "through to top two under underneath up very visible walking was wearing wears wear well with which while who whose "
    "without worn".split()
)


def find_refusal(text: str) -> str:
    """First words by which a model refuses, "" for none."""
    return _first_match(_REFUSAL, text)


def find_hedging(text: str) -> str:
    """First words by which a text hedges, "" for none."""
    return _first_match(_HEDGING, text)


def find_instruction(text: str) -> str:
    """First words by which a text instructs a model, "" for none."""
    return _first_match(_INSTRUCTION, text)


def _first_match(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(normalise_text(text))
    return "" if found is None else " ".join(found[0].split())
