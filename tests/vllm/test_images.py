"""Prompts with images: real engines against Hugging Face's `generate`, token for token."""

from contextlib import closing

import pytest

from rollout_sft import RolloutSFTTrainer
from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.rollouts.vllm.colocated import ColocatedEngine
from rollout_sft.rollouts.vllm.http import Deadline, ServerError
from rollout_sft.rollouts.vllm.image_prompts import check_image_model
from rollout_sft.rollouts.vllm.routes import Server
from rollout_sft.rollouts.vllm.server import ServerEngine
from rollout_sft.rollouts.vllm.weight_transfer import make_transfer
from tests.image_runs import AnswerBuilder, make_samples
from tests.tiny import tiny_arguments
from tests.vllm.conftest import ENGINE_ARGS, LONGEST, colocate_config
from tests.vllm.image_models import ImageLive


def follows_hugging_face(live, engine):
    """Compares before and after three weight updates, each time twice, so that the images are repeated."""
    for _ in range(4):
        expected = live.by_hf()
        backend = live.backend(engine)
        assert backend.generate(live.requests()) == expected
        assert backend.generate(live.requests()[::-1])[::-1] == expected, "the second time from the caches"
        live.change()
        assert sum(a != b for a, b in zip(expected, live.by_hf(), strict=True)) >= 3, "the weights hardly changed"


def bans_media(live, engine):
    live.prefer_media()
    for decoding in ({}, {"temperature": 1.0}):
        answers = live.backend(engine, **decoding).generate(live.requests())
        assert all(live.inputs.media_token_ids.isdisjoint(answer.response_ids) for answer in answers)
    assert live.backend(engine).generate(live.requests()) == live.by_hf()


def samples_by_seed(live, engine):
    backend = live.backend(engine, temperature=1.0, top_p=0.95, top_k=40)
    together = backend.generate(live.requests())
    assert [backend.generate([request])[0] for request in live.requests()] == together
    return together


@pytest.mark.parametrize(("family", "tied"), [("qwen2_vl", True), ("qwen2_5_vl", False)])
def test_a_colocated_engine_answers_images_as_hugging_face(family, tied):
    live = ImageLive(family, tied=tied)
    engine = ColocatedEngine(
        colocate_config(), longest=LONGEST, dtype="float32", inputs=live.inputs, processors=live.processors
    )
    try:
        follows_hugging_face(live, engine)
        samples_by_seed(live, engine)
        if not tied:
            bans_media(live, engine)
    finally:
        engine.close()


def test_every_window_with_images_is_rolled_out_with_its_weights(tmp_path):
    """Three optimizer steps on the same images, so that each window repeats the images of the one before."""
    live = ImageLive("qwen3_vl", tied=True)
    arguments = {
        "global_max_length": 96,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "decoding": {"max_new_tokens": 12},
        "rollout_backend": "vllm",
        "vllm": {"engine_args": ENGINE_ARGS},
        "post_rollout_pack_scope": "window",
    }
    trainer = RolloutSFTTrainer(
        model=live.model,
        args=tiny_arguments(tmp_path, **arguments),
        processing_class=live.processors[0],
        image_processor=live.processors[1],
        train_dataset=make_samples(live.inputs),
        target_builder=AnswerBuilder(),
    )
    windows, generate = [], trainer.generation.train.generate

    def generate_and_compare(requests):
        answers, expected = generate(requests), live.by_hf(requests, max_new_tokens=12)
        windows.append((answers == expected, [answer.response_ids for answer in answers]))
        return answers

    trainer.generation.train.generate = generate_and_compare
    trainer.train()
    trainer.generation.close()
    assert [same for same, _ in windows] == [True] * 3
    assert windows[0][1] != windows[1][1] != windows[2][1], "the weights hardly changed"


def test_a_server_answers_images_as_hugging_face(servers, tmp_path):
    live = ImageLive("qwen3_vl")
    urls = [servers["images"].wait().url]
    config = VLLMConfig(mode="server", base_url=urls, timeout=120.0)
    transfer = make_transfer(config, default_folder=tmp_path)
    engine = ServerEngine(config, transfer, show_progress=False, inputs=live.inputs)
    try:
        follows_hugging_face(live, engine)
        whole = samples_by_seed(live, engine)
        backend = live.backend(engine, temperature=1.0, top_p=0.95, top_k=40)
        with closing(backend.begin(live.requests())) as rollouts:
            assert {**rollouts.wait(8), **rollouts.wait(None)} == dict(enumerate(whole))
        bans_media(live, engine)
    finally:
        engine.close()


def test_a_server_without_the_route_for_images_is_refused_early(servers):
    server = Server(servers["untied"].wait().url, concurrency=1, inputs=ImageLive("qwen3_vl").inputs)
    try:
        with pytest.raises(ServerError, match=r"/inference/v1/generate answered 404: .* --enable-scale-out"):
            server.check_route(Deadline(20))
    finally:
        server.close()


def test_models_and_tokens_that_vllm_takes_otherwise_are_refused():
    live = ImageLive("qwen2_vl")
    config, image_processor = live.model.config, live.processors[1]
    check_image_model(config, *live.processors)
    image_processor.resample = 2
    with pytest.raises(ValueError, match=r"the image processor's resample is 2; .* with 3 \(bicubic\)"):
        check_image_model(config, *live.processors)
    config.image_token_id = 7
    with pytest.raises(ValueError, match=r"the model's token 7 under the name <\|image_pad\|>, but that is token 2"):
        check_image_model(config, *live.processors)
    config.model_type = "internvl"
    with pytest.raises(ValueError, match=r"answers of internvl .* were not compared .* qwen3_vl were\. Set .*: hf"):
        check_image_model(config, *live.processors)
