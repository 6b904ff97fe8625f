"""The vision transformer's layers against NumPy, and its masking."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperface_jax.backbones import create_backbone
from hyperface_jax.backbones.vit import LayerNorm, attention, relu6, restored, shuffled

KEY = jax.random.key(0)


def test_relu6_is_pytorch_s_and_does_not_hide_nan():
    x = jnp.array([-1.0, 0.0, 2.0, 6.0, 7.0, jnp.nan])
    np.testing.assert_array_equal(relu6(x), [0, 0, 2, 6, 6, np.nan])
    slope = jax.grad(lambda x: jnp.sum(relu6(x)))(x[:5])
    np.testing.assert_array_equal(slope, [0, 0, 1, 0, 0])


def test_layer_norm(rng):
    x = (1000 + rng.standard_normal((2, 3, 8))).astype(np.float32)
    params = {
        "scale": rng.standard_normal(8).astype(np.float32),
        "bias": rng.standard_normal(8).astype(np.float32),
    }
    y = LayerNorm(jnp.dtype("float32")).apply({"params": params}, x)
    wide = x.astype(np.float64)
    expected = wide - wide.mean(-1, keepdims=True)
    expected /= np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    expected = expected * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, atol=1e-3)  # 1000 has 7 digits


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)]
)
def test_attention(rng, dtype, tolerance):
    qkv = jnp.asarray(2 * rng.standard_normal((2, 7, 3, 4, 5)), dtype)
    got = attention(qkv)
    assert got.dtype == dtype
    q, k, v = np.asarray(qkv, np.float64).transpose(2, 0, 3, 1, 4)  # [B, heads, N, c]
    weights = np.exp(q @ k.transpose(0, 1, 3, 2) / np.sqrt(5))
    weights /= weights.sum(-1, keepdims=True)
    want = (weights @ v).transpose(0, 2, 1, 3)
    assert np.abs(np.asarray(got, np.float64) - want).max() < tolerance * want.max()


def test_tokens_come_back_to_their_places(rng):
    x = rng.standard_normal((64, 10, 2)).astype(np.float32)
    order = shuffled(KEY, 64, 10)
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(10), (64, 1)))
    assert len(np.unique(order, axis=0)) == 64
    kept = jnp.take_along_axis(x, order[:, :7, None], axis=1)
    back = restored(kept, order, jnp.full((1, 1, 2), 9.0))
    left_out = (np.asarray(back) == 9).all(-1)
    np.testing.assert_array_equal(left_out.sum(1), 3)
    np.testing.assert_array_equal(back, np.where(left_out[..., None], 9, x))
    assert left_out.any(0).all()  # no place is spared


@pytest.mark.parametrize(("ratio", "left_out"), [(0.0, 0), (0.05, 2), (0.4, 10)])
def test_training_leaves_out_the_share_that_was_asked_for(rng, ratio, left_out):
    """Pixels of those patches have no gradient, nor those beyond the last patch."""
    backbone = create_backbone("vit_t", width=4, embedding_dim=8, mask_ratio=ratio)
    module = backbone.module.clone(depth=1)
    backbone = dataclasses.replace(backbone, module=module)
    params, stats = backbone.init(KEY, 49)  # 5x5 patches and 4 pixels
    images = jnp.asarray(rng.uniform(-1, 1, (6, 49, 49, 3)), jnp.float32)

    @jax.jit
    def gradients(params, images):
        def loss(params, images):
            embeddings, _ = backbone.apply(
                params, stats, images, train=True, key=jax.random.key(1)
            )
            return jnp.sum(jnp.sin(embeddings))

        return jax.grad(loss, argnums=(0, 1))(params, images)

    of_params, of_images = gradients(params, images)
    np.testing.assert_array_equal(of_images[:, 45:], 0)
    np.testing.assert_array_equal(of_images[:, :, 45:], 0)
    patches = np.asarray(of_images)[:, :45, :45].reshape(6, 5, 9, 5, 9, 3)
    unseen = (patches == 0).all((2, 4, 5)).reshape(6, 25)
    np.testing.assert_array_equal(unseen.sum(1), left_out)
    assert (len(np.unique(unseen, axis=0)) > 1) == (left_out > 0)
    assert np.any(of_params["mask_token"] != 0) == (left_out > 0)
