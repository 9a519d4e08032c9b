"""`decoder`: its losses by hand, what it learns from its teacher, and how a saved model is read."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

import camtools
from camtools.datasets.scenes import SceneNet, Scenes, scene_classifier
from camtools.errors import InputError, ModelError, PipelineError
from camtools.heads import GAP, MapDecoder, replace_head
from camtools.steps import Decode, State
from camtools_recipes.decoder import DecoderConfig, DecoderRecipe, colour_loss, seed_loss, size_loss

RUN = {"progress": False, "device": "cpu"}


def test_seeds_by_hand():
    logits = torch.tensor([[[2.0, -1.0, 5.0, 0.5]]])
    target = torch.tensor([[[0.3, -0.25, 0.1, -0.2]]])  # object, background, and two between
    known = binary_cross_entropy_with_logits(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(seed_loss(logits, target, 0.1, 0.2), known)
    assert seed_loss(logits, torch.zeros(1, 1, 4), 0.1, 0.2) == 0


def test_colours_by_hand():
    maps = torch.tensor([[[1.0, 0.0]]])
    alike, apart = torch.zeros(1, 3, 1, 2), torch.tensor([[[[0.0, 1.0]], [[0.0, 0.0]], [[0.0, 0.0]]]])
    weight = math.exp(-0.5)  # one sigma apart
    # Of four ordered pairs two are of a position and itself, which costs nothing; their weight is 1 each.
    torch.testing.assert_close(colour_loss(maps, alike, 1.0), torch.tensor(2 / 4))
    torch.testing.assert_close(colour_loss(maps, apart, 1.0), torch.tensor(2 * weight / (2 + 2 * weight)))
    assert colour_loss(torch.ones(1, 1, 2), alike, 1.0) == 0
    far = torch.zeros(1, 1, 4)
    far[0, 0, 3] = 1.0  # more than two positions from the first
    # Pairs within reach: 4 with themselves, 6 of neighbours, 4 at two steps; those with the last cost 2 + 2.
    torch.testing.assert_close(colour_loss(far, torch.zeros(1, 3, 1, 4), 1.0), torch.tensor(4 / 14))


def test_size_by_hand():
    maps = torch.tensor([[[0.25, 0.25]], [[0.5, 0.5]]])
    expected = -(math.log(0.25) + math.log(0.75) + 2 * math.log(0.5)) / 2
    torch.testing.assert_close(size_loss(maps), torch.tensor(expected))
    assert torch.isfinite(size_loss(torch.zeros(1, 2, 2)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three epochs on scenes, with a CAM for a teacher."""
    data = Scenes("train", 24, size=64)
    options = {
        "maps": "cam",
        "epochs": 3,
        "batch_size": 4,
        "lr": 0.03,
        "width": 6,
        "above": 0.05,
        "below": 0.05,
        "colour": 0.1,
        "size": 0.01,
    }
    place = tmp_path_factory.mktemp("decoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = scene_classifier()
    return data, model, options, place, camtools.finetune("decoder", model, data, out=place, **options, **RUN)


def test_the_classifier_stays_and_the_decoder_learns(run):
    data, model, _, _, result = run
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), model(x))
    first, last = result.history[0], result.history[-1]
    assert last["seeds"] < 0.9 * first["seeds"]
    assert last["loss"] == pytest.approx(last["seeds"] + last["colour"] + last["size"], rel=1e-5)
    records = [data[i] for i in range(8)]
    images, labels = [record.image for record in records], [record.label for record in records]
    mine = camtools.explain(result.model, images, target=labels, pipeline=result.pipeline)
    teacher = camtools.explain(model, images, target=labels, pipeline="cam")
    both = [((a.mask & b.mask).sum() / (a.mask | b.mask).sum()) for a, b in zip(mine, teacher, strict=True)]
    assert torch.stack(both).mean() > 0.5


def test_the_file_is_read_by_its_own_maps(run):
    data, _, _, place, result = run
    loaded = camtools.load_model("scenes", place / "best.safetensors").model
    for image in (data[0].image, data[1].image):
        found = camtools.explain(loaded, image, pipeline="Decode", target=1)
        torch.testing.assert_close(found.map, camtools.explain(result.model, image, pipeline="Decode", target=1).map)
    several = camtools.explain(loaded, data[0].image, pipeline=result.pipeline, target=[1, 2])
    torch.testing.assert_close(several[0].map, several[1].map)  # one object, whatever the class


def test_killed_and_resumed_it_ends_with_the_same_weights(run, tmp_path, ended_after_an_epoch):
    data, model, options, _, whole = run
    ended_after_an_epoch(DecoderRecipe(DecoderConfig(**options)), model, data, out=tmp_path, **RUN)
    again = DecoderRecipe(DecoderConfig(**options))
    again._drawing = None  # the maps are in the checkpoint
    resumed = camtools.finetune(again, model, data, out=tmp_path, resume=True, **RUN)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


def test_a_decoder_joins_coarse_and_fine():
    torch.manual_seed(0)
    decoder = MapDecoder([3, 2], width=4).eval()
    coarse, fine = torch.randn(1, 3, 2, 2), torch.randn(1, 2, 4, 4)
    maps = decoder([coarse, fine])
    assert maps.shape == (1, 1, 4, 4)
    assert not torch.allclose(maps, decoder([coarse + 1, fine])) and not torch.allclose(
        maps, decoder([coarse, fine + 1])
    )
    before = torch.tensor([[[[0.0, 1.0], [1.0, 3.0]], [[2.0, 0.0], [0.0, 0.0]]]])
    state = State(features=coarse, pyramid=(fine,), maps=before)
    own = maps.detach().sigmoid().expand(-1, 2, -1, -1)
    torch.testing.assert_close(Decode(decoder=decoder)(state).maps, own)
    finer = interpolate(before / before.amax((2, 3), keepdim=True), (4, 4), mode="bilinear")
    scaled = (own - own.amin()) / (own.amax() - own.amin())
    torch.testing.assert_close(Decode(0.25, decoder)(state).maps, 0.25 * scaled + 0.75 * finer)
    assert repr(Decode(0.25, decoder)) == "Decode(share=0.25, decoder=MapDecoder)"
    with pytest.raises(PipelineError, match=r"stages of \(3, 2\) channels, but these have \(3,\)"):
        Decode(decoder=decoder)(state.replace(pyramid=()))
    with pytest.raises(ModelError, match=r"stages have \(2, 2\) channels, expected \(3, 2\)"):
        decoder([fine, fine])


def test_refusals():
    with pytest.raises(PipelineError, match=r"Decode: SceneNet has no decoder.*camtools finetune decoder"):
        camtools.Explainer(scene_classifier(), "Decode")
    with pytest.raises(PipelineError, match=r"Decode has no decoder yet"):
        Decode()(State())
    with pytest.raises(PipelineError, match=r"Decode\(decoder=Linear\): expected a camtools.heads.MapDecoder"):
        Decode(decoder=torch.nn.Linear(1, 1))
    with pytest.raises(PipelineError, match=r"Decode.*share=1.5"):
        Decode(1.5)
    with pytest.raises(ModelError, match=r"channels=\[3\]: expected those of F and of at least one finer stage"):
        MapDecoder([3])
    net = SceneNet(widths=(4, 4, 8, 8)).eval()
    with pytest.raises(InputError, match=r"knows the data's 5 classes.*Run gap first"):
        DecoderRecipe().build(net, 5)


def test_a_model_with_a_head_of_its_own_gets_a_decoder_too():
    net = replace_head(SceneNet(widths=(4, 4, 8, 8)).eval(), GAP())
    built = DecoderRecipe(DecoderConfig(width=2)).build(net, None)
    assert net.decoder is None and built.decoder.channels[0] == 8
    assert not any(p.requires_grad for name, p in built.named_parameters() if not name.startswith("decoder."))
