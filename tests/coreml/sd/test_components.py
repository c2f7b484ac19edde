"""The contract: a table written from Apple's Swift sources, and what is in the packages."""

import mlx.core as mx
import pytest
from coremltools.proto import Model_pb2

from macai.coreml.sd.components import components
from macai.coreml.sd.form import Form, picture_size
from macai.diffusion.loading.known_configs import TEXT_ENCODERS, UNETS, vae
from macai.errors import ExportError, UsageError

HALF, FULL = 65552, 65568  # ArrayFeatureType.ArrayDataType

# TextEncoder.swift, Unet.swift, Decoder.swift and Encoder.swift of apple/ml-stable-diffusion, with
# the shapes that its torch2coreml.py gives them.
SD1 = {
    "TextEncoder": {"input_ids": ((1, 77), "float32")},
    "Unet": {
        "sample": ((2, 4, 64, 64), "float16"),
        "timestep": ((2,), "float16"),
        "encoder_hidden_states": ((2, 768, 1, 77), "float16"),
    },
    "VAEDecoder": {"z": ((1, 4, 64, 64), "float16")},
    "VAEEncoder": {"x": ((1, 3, 512, 512), "float16")},
}
OUTPUTS = {
    "TextEncoder": ["last_hidden_state", "pooled_outputs"],
    "Unet": ["noise_pred"],
    "VAEDecoder": ["image"],
    "VAEEncoder": ["latent"],
}


def configs(kind):
    return {"unet": UNETS[kind], "vae": vae(kind), **TEXT_ENCODERS[kind]}


def inputs_of(kind, **form):
    return {
        c.name: {n: (f.shape, str(f.dtype).rpartition(".")[2]) for n, f in c.inputs.items()}
        for c in components(configs(kind), Form(**form))
    }


def test_packages_of_sd1_have_the_inputs_that_swift_feeds():
    assert inputs_of("sd1") == SD1


def test_packages_have_the_outputs_that_swift_reads():
    for kind in ("sd1", "sd2"):
        made = components(configs(kind), Form())
        assert {c.name: list(c.outputs) for c in made} == OUTPUTS


def test_packages_of_sd2_are_told_1024_channels_and_made_for_768_pixels():
    unet = inputs_of("sd2")["Unet"]
    assert unet["encoder_hidden_states"] == ((2, 1024, 1, 77), "float16")
    assert unet["sample"] == ((2, 4, 96, 96), "float16")


def test_packages_of_sdxl_have_the_inputs_that_swift_feeds():
    made = inputs_of("sdxl")
    assert made == {
        "TextEncoder": {"input_ids": ((1, 77), "float32")},
        "TextEncoder2": {"input_ids": ((1, 77), "float32")},
        "Unet": {
            "sample": ((2, 4, 128, 128), "float16"),
            "timestep": ((2,), "float16"),
            "encoder_hidden_states": ((2, 2048, 1, 77), "float16"),
            "time_ids": ((2, 6), "float16"),
            "text_embeds": ((2, 1280), "float16"),
        },
        # Its decoder overflows float16, and Swift feeds its encoder float32 in any case.
        "VAEDecoder": {"z": ((1, 4, 128, 128), "float32")},
        "VAEEncoder": {"x": ((1, 3, 1024, 1024), "float32")},
    }
    assert list(made["Unet"]) == [
        "sample", "timestep", "encoder_hidden_states", "time_ids", "text_embeds",
    ]  # fmt: skip
    outputs = {c.name: list(c.outputs) for c in components(configs("sdxl"), Form())}
    assert outputs["TextEncoder"] == outputs["TextEncoder2"] == ["hidden_embeds", "pooled_outputs"]


def test_swift_tells_a_refiner_by_its_five_time_ids():
    made = inputs_of("sdxl-refiner")
    assert "TextEncoder" not in made
    assert made["Unet"]["time_ids"] == ((2, 5), "float16")
    assert made["Unet"]["encoder_hidden_states"] == ((2, 1280, 1, 77), "float16")


def test_an_autoencoder_of_sdxl_that_was_made_for_float16_has_it():
    own = configs("sdxl")
    made = components(own | {"vae": own["vae"] | {"force_upcast": False}}, Form())
    precisions = {c.name: c.precision for c in made}
    assert (precisions["VAEDecoder"], precisions["VAEEncoder"]) == ("fp16", "fp32")


def test_a_batch_of_one_and_another_size_are_in_the_shapes():
    made = inputs_of("sd1", batch=1, width=640, height=384)
    assert made["Unet"] == {
        "sample": ((1, 4, 48, 80), "float16"),
        "timestep": ((1,), "float16"),
        "encoder_hidden_states": ((1, 768, 1, 77), "float16"),
    }
    assert made["VAEDecoder"]["z"][0] == (1, 4, 48, 80)
    assert made["VAEEncoder"]["x"][0] == (1, 3, 384, 640)


def test_floats_of_an_fp32_export_are_float32():
    kinds = {
        kind for ins in inputs_of("sd1", precision="fp32").values() for _, kind in ins.values()
    }
    assert kinds == {"float32"}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"width": 500}, "500x512 pixels: sides must be multiples of 64"),
        ({"batch": 3}, "a U-Net of 3 rows"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"attention": "flash"}, "unknown attention 'flash'"),
    ],
)
def test_a_form_that_no_package_has_is_refused(form, message):
    with pytest.raises(UsageError, match=message):
        picture_size(configs("sd1"), Form(**form))


@pytest.mark.parametrize(
    ("unet", "message"),
    [({"time_cond_proj_dim": 256}, "takes the guidance"), ({"num_class_embeds": 4}, "classes")],
)
def test_a_unet_that_wants_what_swift_does_not_feed_is_refused(unet, message):
    own = configs("sd1")
    with pytest.raises(ExportError, match=message):
        components(own | {"unet": own["unet"] | unet}, Form())


def test_saved_packages_say_what_the_table_says(bundle):
    sizes = {"h": 16, "w": 16, "H": 32, "W": 32}
    wanted = {
        "TextEncoder": {"input_ids": (FULL, [1, 77])},
        "Unet": {
            "sample": (HALF, [2, 4, sizes["h"], sizes["w"]]),
            "timestep": (HALF, [2]),
            "encoder_hidden_states": (HALF, [2, 16, 1, 77]),
        },
        "VAEDecoder": {"z": (HALF, [1, 4, sizes["h"], sizes["w"]])},
        "VAEEncoder": {"x": (HALF, [1, 3, sizes["H"], sizes["W"]])},
    }
    shapes = {
        "last_hidden_state": [1, 77, 16],
        "pooled_outputs": [1, 16],
        "noise_pred": [2, 4, 16, 16],
        "image": [1, 3, 32, 32],
        "latent": [1, 8, 16, 16],
    }
    for name, inputs in wanted.items():
        spec = spec_of(bundle, name)
        assert spec.specificationVersion == 7  # iOS 16
        assert features(spec.description.input) == inputs
        outputs = {output: (FULL, shapes[output]) for output in OUTPUTS[name]}
        assert features(spec.description.output) == outputs


def spec_of(bundle, name):
    file = bundle / f"Resources/{name}.mlpackage/Data/com.apple.CoreML/model.mlmodel"
    return Model_pb2.Model.FromString(file.read_bytes())


def features(features):
    arrays = {f.name: f.type.multiArrayType for f in features}
    return {name: (array.dataType, list(array.shape)) for name, array in arrays.items()}


def test_the_first_input_of_the_text_encoder_is_told_in_floats():
    (ids,) = components(configs("sd1"), Form())[0].inputs.values()
    assert ids.dtype == mx.float32
