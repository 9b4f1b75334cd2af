"""The spectral adapter: its published size, its arithmetic done otherwise, what it may not mix."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.errors import RecipeError
from pipeline.pretrain.encoders.backbones import EncoderShape, build_encoder, width_of
from pipeline.pretrain.encoders.spectral import LEAST_BANDS, WIDTH, SpectralAdapter, lengths
from pipeline.pretrain.methods.mae import MAE, Decoder

#: Of the decoder.
SMALL = Decoder(width=16, blocks=1, heads=2)


def adapter(bands=80):
    torch.manual_seed(0)
    return SpectralAdapter(bands)


def image(bands=80, count=3, size_px=4):
    random = torch.Generator().manual_seed(1)
    return torch.randn(count, bands, size_px, size_px, generator=random)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def one_by_one(module, images):
    """The adapter in float64, one dimension at a time: spectra are rows, pixels are items."""
    batch, bands, height, width = images.shape
    values = images.double().permute(0, 2, 3, 1).reshape(-1, 1, bands)
    for k, (stride, padding) in enumerate([(5, 1), (5, 1), (3, 1)]):
        conv, norm = module.layers[3 * k], module.layers[3 * k + 1]
        weight = conv.weight.double()[:, :, :, 0, 0]
        values = F.conv1d(values, weight, conv.bias.double(), stride=stride, padding=padding)
        mean = values.mean(dim=(0, 2), keepdim=True)
        spread = (values.var(dim=(0, 2), unbiased=False, keepdim=True) + norm.eps).sqrt()
        values = (values - mean) / spread
        values = values * norm.weight.double().view(-1, 1) + norm.bias.double().view(-1, 1)
        values = values.clamp(min=0)
    pooled = F.adaptive_avg_pool1d(values, 1)
    return pooled.reshape(batch, height, width, WIDTH).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("bands", "left"),
    [
        (224, (44, 8, 2)),
        (202, (40, 8, 2)),
        (198, (39, 7, 2)),
        (144, (28, 5, 1)),
        (103, (20, 4, 1)),
        (75, (15, 3, 1)),
    ],
)
def test_a_spectrum_is_as_long_after_each_layer_as_published(bands, left):
    assert lengths(bands) == left
    module, found = adapter(bands).eval(), []
    for conv in module.layers[::3]:
        conv.register_forward_hook(lambda _m, _i, out: found.append(out.shape[2]))
    with torch.inference_mode():
        assert module.plain(image(bands, 1, 2)).shape == (1, WIDTH, 2, 2)
    assert tuple(found) == left


def test_it_has_as_many_parameters_as_published():
    assert parameters(adapter(202)) == parameters(adapter(75)) == 56_192


@pytest.mark.parametrize("bands", [75, 103, 202, 224])
def test_output_gradients_and_statistics_equal_a_reference_in_float64(bands):
    module, images = adapter(bands), image(bands).requires_grad_()
    upstream = torch.randn(3, WIDTH, 4, 4, generator=torch.Generator().manual_seed(2))
    found = module(images)
    wanted = one_by_one(module, images)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    inputs = [images, *(p for p in module.parameters())]
    mine = torch.autograd.grad(found, inputs, upstream)
    others = torch.autograd.grad(wanted, inputs, upstream.double())
    # A shift before a batch norm has no gradient but rounding, so the largest one is the scale.
    scale = max(theirs.abs().max().item() for theirs in others)
    for ours, theirs in zip(mine, others, strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5 * scale)
    first = F.conv1d(
        images.detach().double().permute(0, 2, 3, 1).reshape(-1, 1, bands),
        module.layers[0].weight.double()[:, :, :, 0, 0],
        module.layers[0].bias.double(),
        stride=5,
        padding=1,
    )
    kept = 0.1 * first.mean(dim=(0, 2))
    torch.testing.assert_close(module.layers[1].running_mean.double(), kept, rtol=1e-5, atol=1e-6)


def twins(bands, shift=0.0):
    """The adapter, and its definition in float64."""
    module = adapter(bands)
    for norm in module.layers[1::3]:
        nn.init.constant_(norm.bias, shift)
    other = SpectralAdapter(bands)
    other.load_state_dict(module.state_dict())
    return module, other.double()


def learned(call, images, upstream, *, bf16):
    """Output and gradients, of images and of all parameters that have one but rounding."""
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = call(images)
    module = call.__self__
    named = [
        p
        for name, p in module.named_parameters()
        if not name.endswith(("0.bias", "3.bias", "6.bias"))
    ]
    return [out, *torch.autograd.grad(out, [images, *named], upstream.to(out.dtype))]


def distances(found, wanted):
    """Of each tensor, relative to the wanted one's length."""
    return [
        ((one.double() - other).norm() / other.norm()).item()
        for one, other in zip(found, wanted, strict=True)
    ]


@pytest.mark.parametrize("bands", [75, 202, 224])
def test_in_evaluation_it_is_conv3d_with_the_moments_it_kept(bands):
    module, reference = twins(bands)
    images, upstream = image(bands), image(WIDTH)
    with torch.no_grad():
        module(images)
        reference.plain(images.double())
    for name, kept in module.named_buffers():
        torch.testing.assert_close(kept.double(), reference.get_buffer(name).double())
    found = learned(module.eval().forward, images, upstream, bf16=False)
    wanted = learned(reference.eval().plain, images.double(), upstream, bf16=False)
    assert max(distances(found, wanted)) < 1e-5


@pytest.mark.parametrize("bands", [75, 202, 224])
def test_in_bfloat16_it_is_as_near_to_float64_as_conv3d(bands):
    images, upstream = image(bands, 4, 8), image(WIDTH, 4, 8)
    module, reference = twins(bands)
    wanted = learned(reference.plain, images.double(), upstream, bf16=False)
    found = distances(learned(module.forward, images, upstream, bf16=True), wanted)
    plain = distances(learned(twins(bands)[0].plain, images, upstream, bf16=True), wanted)
    assert found[0] < 1e-2
    # Gradients of both are farther off: an activation near 0 rounds to the other side of it.
    assert all(ours < 1.2 * theirs for ours, theirs in zip(found, plain, strict=True))
    for norm in module.layers[1::3]:
        kept, mean = norm.running_var.double(), norm.running_mean.double()
        assert norm.num_batches_tracked == 1
        other = dict(zip(module.layers, reference.layers, strict=True))[norm]
        torch.testing.assert_close(kept, other.running_var, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(mean, other.running_mean, rtol=1e-2, atol=1e-2)
    # Where all activations are far from 0, they are not.
    module, reference = twins(bands, shift=4.0)
    wanted = learned(reference.plain, images.double(), upstream, bf16=False)[:2]
    found = learned(module.forward, images, upstream, bf16=True)[:2]
    assert max(distances(found, wanted)) < 1e-2


def kept_bytes(call, *, bf16=False):
    """Bytes that an adapter keeps for its gradients."""
    found = {}

    def count(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        call(image(202, 2, 16))
    return sum(found.values())


@pytest.mark.parametrize("bf16", [False, True])
def test_it_keeps_half_of_what_conv3d_keeps_or_less(bf16):
    module = adapter(202)
    assert kept_bytes(module.forward, bf16=bf16) < 0.4 * kept_bytes(module.plain, bf16=bf16)


def test_behind_synchronised_norms_it_is_the_same_adapter():
    module, reference = twins(75)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    images, upstream = image(75), image(WIDTH)
    # In a run of one process there is nothing to synchronise, and evaluation never does.
    found = learned(synchronised.eval().forward, images, upstream, bf16=False)
    wanted = learned(reference.eval().plain, images.double(), upstream, bf16=False)
    assert max(distances(found, wanted)) < 1e-5
    assert kept_bytes(synchronised.forward) < 0.4 * kept_bytes(adapter(202).eval().plain)


def test_no_pixel_sees_another():
    module = adapter().eval()
    images = image()
    changed = images.clone()
    changed[0, :, 1, 2] += 1
    with torch.inference_mode():
        moved = (module(images) != module(changed)).any(dim=1)
    assert moved.nonzero().tolist() == [[0, 1, 2]]


def test_one_state_serves_any_number_of_bands():
    small, large = adapter(75), adapter(224)
    large.load_state_dict(small.state_dict())
    assert all(map(torch.equal, small.parameters(), large.parameters()))
    assert torch.isfinite(large(image(224))).all()


@pytest.mark.parametrize("backbone", ["spec_resnet18", "spec_vit_tiny"])
@pytest.mark.parametrize("bands", [LEAST_BANDS - 1, 13, 1])
def test_too_few_bands_are_refused_with_the_way_out(backbone, bands):
    with pytest.raises(RecipeError, match=r"needs 75 bands.*without `spec_`"):
        build_encoder(EncoderShape(backbone, bands, 16, 4), seed=0)


@pytest.mark.parametrize("backbone", ["spec_resnet18", "spec_vit_tiny"])
@pytest.mark.parametrize(("bands", "image_px"), [(75, 16), (202, 64)])
def test_an_encoder_behind_an_adapter_gives_one_vector(backbone, bands, image_px):
    encoder = build_encoder(EncoderShape(backbone, bands, image_px, 8), seed=0).eval()
    with torch.inference_mode():
        features = encoder(image(bands, 2, image_px))
    assert features.shape == (2, width_of(encoder))
    assert (features[0] != features[1]).any()


def test_weights_behind_an_adapter_are_a_function_of_the_seed():
    shape = EncoderShape("spec_resnet18", 75, 16, 4)
    first, second, other = (build_encoder(shape, seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key in ("conv1.layers.0.weight", "layer1.0.conv1.weight"):
        assert not torch.equal(first[key], other[key])


@pytest.mark.parametrize(("image_px", "edge"), [(32, 4), (128, 8)])
def test_a_small_image_keeps_its_resolution_in_the_first_stage(image_px, edge):
    with torch.device("meta"):
        net = build_encoder(EncoderShape("spec_resnet18", 75, image_px, 4), seed=0)
        assert net.forward_features(torch.empty(1, 75, image_px, image_px)).shape[-1] == edge


@pytest.mark.parametrize(
    ("backbone", "patch_px", "millions"),
    [
        # Published sizes: SpectralEarth's table, and its networks rebuilt and counted.
        ("spec_resnet50", 4, 24.20),
        ("spec_vit_small", 4, 22.5),
        ("spec_vit_small", 8, 24.6),
        ("spec_vit_base", 4, 87.5),
        ("spec_vit_large", 4, 305.5),
    ],
)
def test_large_encoders_have_the_published_size(backbone, patch_px, millions):
    with torch.device("meta"):
        net = build_encoder(EncoderShape(backbone, 202, 128, patch_px), seed=0)
        assert net(torch.empty(2, 202, 128, 128)).shape == (2, width_of(net))
    # ViTs here have no class token, and positions without a place for it.
    assert parameters(net) / 1e6 == pytest.approx(millions, abs=0.1 if "vit" in backbone else 0.01)


def test_a_masked_autoencoder_hides_tokens_behind_an_adapter(view):
    vit = build_encoder(EncoderShape("spec_vit_tiny", 75, 8, 4), seed=0)
    method = MAE(vit, bands=75, mask_fraction=0.5, decoder=SMALL)
    learned = method([view(2, 75)], torch.Generator().manual_seed(0))
    learned.loss.backward()
    assert method.predict.out_features == 4 * 4 * 75
    assert vit.patch_embed.adapter.layers[0].weight.grad is not None
