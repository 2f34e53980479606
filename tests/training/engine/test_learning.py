"""Each loss does something to what it trains, in seconds on toy data: outcomes, where the other tests have formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from tests.support.models import batch, build, recommended, texts
from training.engine import adversary, losses
from training.models.clothing_head import ClothingHead
from training.models.model import Model

PEOPLE, OUTFITS, FACTORS = 200, 3, 24


def wardrobe(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images and captions (N, 2 * FACTORS) and person ids (N,): an image shows person and outfit, its caption names the outfit
    and, faintly, the person; every person has OUTFITS images, each in another outfit."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.arange(PEOPLE).repeat_interleave(OUTFITS)
    person = torch.randn(PEOPLE, FACTORS, generator=g)[ids]
    outfit = torch.randn(PEOPLE * OUTFITS, FACTORS, generator=g)

    def noisy(weight: float) -> Tensor:
        x = torch.cat([weight * person, outfit], 1)
        return x + 0.5 * torch.randn(x.shape, generator=g)

    return noisy(1.0), noisy(0.1), ids


def r1_of_captions(positives: Any, steps: int) -> float:
    """R-1 of captions of unseen people after training two linear maps with InfoNCE on batches of whole wardrobes."""
    torch.manual_seed(0)
    maps = nn.ModuleList([nn.Linear(2 * FACTORS, 16), nn.Linear(2 * FACTORS, 16)])
    adam = torch.optim.Adam(maps.parameters(), lr=1e-2)
    image, text, ids = wardrobe(0)
    for _ in range(steps):
        rows = torch.isin(ids, torch.randperm(PEOPLE)[:16]).nonzero()[:, 0]
        embedded = [F.normalize(m(x[rows]), dim=1) for m, x in zip(maps, (image, text), strict=True)]
        loss = losses.info_nce(*embedded, ids[rows], 0.07, symmetric=True, positives=positives)
        adam.zero_grad()
        loss.backward()
        adam.step()
    image, text, ids = wardrobe(1)
    with torch.no_grad():
        first = (F.normalize(maps[1](text), dim=1) @ F.normalize(maps[0](image), dim=1).T).argmax(1)
    return float((ids[first] == ids).float().mean())


def test_own_captions_teach_more_than_those_of_the_person_in_other_clothes() -> None:
    own, identity = (r1_of_captions(positives, 60) for positives in ("own", "identity"))
    assert own > identity + 0.1, (own, identity)


def trained_fusion(**changes: Any) -> tuple[Model, Any]:
    """A tiny model whose fusion alone has learned on one batch, the fused caption another one at every step: what it says
    of an image must come from the image, unless it is the caption that InfoNCE asks for."""
    config, loss = recommended()
    model = build(replace(config, backend="auto"), replace(loss, **changes)).train()
    data, g = batch(16), torch.Generator().manual_seed(1)
    assert model.fusion is not None and model.matching_head is not None
    parts = (model.fusion, model.matching_head, model.bdam)
    adam = torch.optim.Adam([p for part in parts for p in part.parameters()], lr=3e-3)
    for _ in range(240):
        data = replace(data, other=texts(16, g))
        if model.loss.final_text == "caption":
            # New captions at every step: the images cannot be learned by heart, so that only copying is left.
            data = replace(data, captions=texts(16, g))
        features = model(data)
        tasks = losses.task_losses(features, data.ids_B, data.clothing_group_B, model.loss, "reference")
        adam.zero_grad()
        tasks["info_nce"].backward()
        adam.step()
    return model, data


def share_found(model: Model, data: Any) -> float:
    """Share of f_final that find the caption of their batch row among all; batch statistics as in training."""
    with torch.no_grad():
        features = model(data)
        assert features.f_final is not None
        return float(((features.f_final @ features.t_caption.T).argmax(1) == torch.arange(16)).float().mean())


@pytest.mark.parametrize("text", ["other", "caption"])
def test_f_final_depends_on_the_image_unless_it_may_copy(text: str) -> None:
    model, data = trained_fusion(final_text=text, final_wrong_pairs=False)
    wrong = replace(data, images_BCHW=data.images_BCHW.roll(3, 0))
    assert share_found(model, data) > 0.6
    assert share_found(model, wrong) < 0.1 if text == "other" else share_found(model, wrong) > 0.6


def test_the_matching_head_leaves_log_2() -> None:
    """Captions that belong to their images for good: right pairs are told from the most similar wrong ones."""
    config, loss = recommended()
    model = build(replace(config, backend="auto"), replace(loss, final_text="caption")).train()
    adam, values = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(80):
        features = model(batch(16))
        assert features.matching_logits is not None and features.matching_labels is not None
        value = losses.matching(features.matching_logits, features.matching_labels)
        adam.zero_grad()
        value.backward()
        adam.step()
        values.append(float(value.detach()))
    assert values[0] > 0.6 and values[-1] < 0.4, values


def readable(mode: str | None) -> float:
    """P of the own clothing text as a fresh linear probe finds it in an identity feature that was trained to name the person,
    with an adversary or (None) without."""
    torch.manual_seed(0)
    image, _, ids = wardrobe(0)
    clothing = F.normalize(image[:, FACTORS:], dim=1)
    feature, head = nn.Linear(2 * FACTORS, 16), ClothingHead(16, FACTORS, mode or "critic")  # type: ignore[arg-type]
    adam = torch.optim.Adam([*feature.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(200):
        rows = torch.isin(ids, torch.randperm(PEOPLE)[:16]).nonzero()[:, 0]
        f, group = feature(image[rows]), torch.arange(len(rows))
        v_clo, v_id_hat_clo, v_critic = head(f, f.detach())
        loss = losses.triplet(F.normalize(f, dim=1), ids[rows], 0.3)
        views = (v_clo, v_id_hat_clo, clothing[rows], group)
        loss = loss + adversary.clothing_matching(v_clo, clothing[rows], group, 0.1)
        if mode:
            loss = loss + adversary.clothing_adversarial(*views, 0.1, mode, v_critic)  # type: ignore[arg-type]
        adam.zero_grad()
        loss.backward()
        adam.step()
    f, probe = feature(image).detach(), nn.Linear(16, FACTORS)
    f = (f - f.mean(0)) / f.std(0)
    adam = torch.optim.Adam(probe.parameters(), lr=1e-2)
    for _ in range(150):
        rows = torch.randperm(len(ids))[:48]
        loss = adversary.clothing_matching(F.normalize(probe(f[rows]), dim=1), clothing[rows], torch.arange(48), 0.1)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return float(loss.detach().neg().exp())


def test_a_critic_takes_the_clothes_out_of_the_identity_feature() -> None:
    without, printed, critic = (readable(mode) for mode in (None, "intent", "critic"))
    assert critic < 0.75 * min(without, printed), (without, printed, critic)


def explained(ridge: bool) -> tuple[float, float]:
    """R^2 of clothing and of the person, read by ridge regression on unseen people from a feature that has a reason to know
    both: it is trained by triplets and by captions, which name the outfit."""
    torch.manual_seed(0)
    image, text, ids = wardrobe(0)
    feature, caption = nn.Linear(2 * FACTORS, 2 * FACTORS), nn.Linear(2 * FACTORS, 2 * FACTORS)
    adam = torch.optim.Adam([*feature.parameters(), *caption.parameters()], lr=1e-2)
    for _ in range(150):
        rows = torch.isin(ids, torch.randperm(PEOPLE)[:43]).nonzero()[:, 0]
        f = feature(image[rows])
        v, t = F.normalize(f, dim=1), F.normalize(caption(text[rows]), dim=1)
        loss = losses.triplet(v, ids[rows], 0.3, 0.2)
        loss = loss + 0.1 * losses.info_nce(v, t, ids[rows], 0.1, symmetric=True, positives="own")
        if ridge:
            loss = loss + 2 * adversary.readable_variance(f, image[rows, FACTORS:], ids[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        f, half = StandardScaler().fit_transform(feature(image)), (ids < PEOPLE // 2).numpy()
    parts = [image[:, FACTORS:].numpy(), image[:, :FACTORS].numpy()]
    clothing, person = (Ridge(10.0).fit(f[half], y[half]).score(f[~half], y[~half]) for y in parts)
    return clothing, person


def test_the_ridge_adversary_takes_the_clothes_out_of_the_identity_feature() -> None:
    without, with_ridge = explained(False), explained(True)
    assert without[0] > 0.3 and with_ridge[0] < 0.5 * without[0], (without, with_ridge)
    assert with_ridge[1] > 0.8 * without[1], (without, with_ridge)
