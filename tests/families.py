"""Families of language models as data: one line a configuration, tiny and random, nothing downloaded.

`COMMON` holds the sizes that all of them share, under every name that configurations have for them. A configuration
class takes from it what it has a field for; a row's own settings stand above that. `tests/tiny.py` makes the models,
`python -m tests.families_survey` runs every row, and `make test` those that are marked.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

NUM_LAYERS = 5
VOCABULARY = 300
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "sliding_window": 4,  # shorter than every prompt of the tests
    "is_decoder": True,
    # Decoders of models with an encoder.
    "d_model": 32,
    "decoder_layers": NUM_LAYERS,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "ffn_dim": 48,
    # Mixtures of experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    # Latent attention and the choice of a few keys for each token.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 64,  # more than any prompt of the tests has
    # A state along the row: linear attention and state-space layers.
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 4,
    "mamba_dt_rank": 4,
    "chunk_size": 4,
    "state_size": 8,
    "time_step_rank": 4,
}
"""Sizes by the names that configurations have for them."""


@dataclass(frozen=True)
class Family:
    """A configuration, small and random.

    Attributes:
        config_class: the configuration's class in transformers.
        settings: what it has besides `COMMON`.
        attentions: attention implementations that the library offers for it.
        packs: whether several choices can share a row: false with ALiBi (a bias by place in the row) and with layers
            that mix neighbouring tokens without a mask (convolutions).
        note: what is special about the configuration, for the table of docs/models.md.
        expected: "right", or "refused: " and words that the refusal holds.
        quick: whether `make test` runs every test of a family on it.
        stands_for: the kind of model for which `make test` surveys it; "" where `make test-families` alone does.
        images: whether it takes images as well; only text is given to it here.
    """

    config_class: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    attentions: tuple[str, ...] = ("sdpa", "eager")
    packs: bool = True
    note: str = ""
    expected: str = "right"
    quick: bool = False
    stands_for: str = ""
    images: bool = False

    def config(self) -> PreTrainedConfig:
        """Return its configuration."""
        return small_config(getattr(transformers, self.config_class), self.settings)

    def model(self, attention: str) -> PreTrainedModel:
        """Return a model with the library's first weights."""
        auto = AutoModelForImageTextToText if self.images else AutoModelForCausalLM
        return auto.from_config(self.config(), attn_implementation=attention)


def small_config(kind: type[PreTrainedConfig], settings: Mapping[str, Any]) -> PreTrainedConfig:
    """Return a configuration with `COMMON` wherever the class has a field for it, and the settings above that."""
    fields, renamed = set(inspect.signature(kind.__init__).parameters), kind.attribute_map
    common = {renamed.get(name, name): value for name, value in COMMON.items() if {name, renamed.get(name)} & fields}
    inner = {
        name: small_config(CONFIG_MAPPING[part["model_type"]] if "model_type" in part else kind.sub_configs[name], part)
        for name, part in settings.items()
        if part is not None and name in kind.sub_configs
    }
    return kind(**{**common, **settings, **inner})


EAGER = ("eager",)
REFUSED = "refused: run in any order"
SOME_WINDOWS = " (sliding window in some layers)"
_LATENT = {"num_key_value_heads": 4}  # each head has keys and values of its own
_ALTERNATING = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
_FULL_LAST = ["sliding_attention", "full_attention"] * 2 + ["full_attention"]
_CONVOLUTIONS = ["conv", "full_attention"] * 2 + ["conv"]
_LINEAR = ["linear_attention", "full_attention"] * 2 + ["linear_attention"]
_GEMMA3N = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "laurel_rank": 8}
_GEMMA4 = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "global_head_dim": 8}
_GEMMA4_IDS = {
    "image_token_id": 295,
    "video_token_id": 296,
    "audio_token_id": 297,
    "boi_token_id": 291,
    "eoi_token_id": 292,
    "boa_token_id": 293,
    "eoa_token_index": 294,
}
_HYBRID = ["linear_attention", "hybrid", "linear_attention", "hybrid", "hybrid"]
_ZAMBA2 = {
    "layers_block_type": _HYBRID,
    "num_key_value_heads": 4,
    "adapter_rank": 4,
    "num_mem_blocks": 2,
    "mamba_ngroups": 1,
}
_INKLING = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "sliding_window_size": 4,
    "layer_types": ["hybrid_sliding", "hybrid"] * 2 + ["hybrid_sliding"],
}
_SHARED_KINDS = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "full_attention"]
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
_QUANTISED_PICTURES = {
    "embed_dim": 8,
    "latent_channels": 8,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
}
_PATCHES = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "hidden_size": 16}
_QWEN3_VISION = {
    **_PATCHES,
    "intermediate_size": 24,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}
_QWEN_TEXT = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
_QWEN_IDS = {"image_token_id": 296, "video_token_id": 297, "vision_start_token_id": 298, "vision_end_token_id": 299}
_MLLAMA = {
    "text_config": {"cross_attention_layers": [1, 3]},
    "vision_config": {
        **_VISION,
        "attention_heads": 2,
        "num_global_layers": 1,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 32,
        "max_num_tiles": 2,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    },
    "image_token_index": 299,
}
_LLAMA4 = {
    "text_config": {"intermediate_size_mlp": 48, "attention_chunk_size": 4, "num_experts_per_tok": 1},
    "vision_config": {**_VISION, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    "image_token_index": 299,
    "boi_token_index": 297,
    "eoi_token_index": 298,
}


def _sees(text: str, vision: str = "", token: str = "image_token_index", **more: Any) -> dict[str, Any]:
    """Settings of a text model that a vision model is joined to; `more`: of the vision model."""
    kind = {"model_type": vision} if vision else {}
    return {"text_config": {"model_type": text}, "vision_config": {**kind, **_VISION, **more}, token: 299}


_PALIGEMMA = {**_sees("gemma", "siglip_vision_model", projection_dim=32), "projection_dim": 32}
PLAIN = {
    "afmoe": "AfmoeConfig", "apertus": "ApertusConfig", "arcee": "ArceeConfig", "aria_text": "AriaTextConfig",
    "beam": "BeamConfig", "bert": "BertConfig", "bert_generation": "BertGenerationConfig", "biogpt": "BioGptConfig",
    "bitnet": "BitNetConfig", "blenderbot": "BlenderbotConfig", "blenderbot_small": "BlenderbotSmallConfig",
    "cohere": "CohereConfig", "cohere2": "Cohere2Config", "cohere2_moe": "Cohere2MoeConfig", "cwm": "CwmConfig",
    "diffllama": "DiffLlamaConfig", "doge": "DogeConfig", "dots1": "Dots1Config", "electra": "ElectraConfig",
    "ernie": "ErnieConfig", "ernie4_5": "Ernie4_5Config", "ernie4_5_moe": "Ernie4_5_MoeConfig",
    "exaone4": "Exaone4Config", "exaone_moe": "ExaoneMoeConfig", "flex_olmo": "FlexOlmoConfig",
    "gemma": "GemmaConfig", "glm": "GlmConfig", "glm4": "Glm4Config", "glm4_moe": "Glm4MoeConfig",
    "gpt_bigcode": "GPTBigCodeConfig", "granite": "GraniteConfig", "granitemoe": "GraniteMoeConfig",
    "granitemoeshared": "GraniteMoeSharedConfig", "helium": "HeliumConfig",
    "hunyuan_v1_dense": "HunYuanDenseV1Config", "hunyuan_v1_moe": "HunYuanMoEV1Config", "hy_v3": "HYV3Config",
    "hyperclovax": "HyperCLOVAXConfig", "internlm3": "InternLM3Config", "iquestcoder": "IQuestCoderConfig",
    "jais2": "Jais2Config", "jetmoe": "JetMoeConfig", "kolibri1": "Kolibri1Config", "laguna": "LagunaConfig",
    "lfm3": "Lfm3Config", "marian": "MarianConfig", "mbart": "MBartConfig", "mellum": "MellumConfig",
    "minimax": "MiniMaxConfig", "minimax_m2": "MiniMaxM2Config", "minimax_m3_vl_text": "MiniMaxM3VLTextConfig",
    "ministral": "MinistralConfig", "ministral3": "Ministral3Config", "mixtral": "MixtralConfig",
    "modernbert_decoder": "ModernBertDecoderConfig", "nanochat": "NanoChatConfig", "nemotron": "NemotronConfig",
    "nemotron_h": "NemotronHConfig", "olmo": "OlmoConfig", "olmo3": "Olmo3Config", "olmo_hybrid": "OlmoHybridConfig",
    "pegasus": "PegasusConfig", "persimmon": "PersimmonConfig", "phi": "PhiConfig", "phimoe": "PhimoeConfig",
    "plbart": "PLBartConfig", "qwen3_5_moe_text": "Qwen3_5MoeTextConfig", "qwen3_5_text": "Qwen3_5TextConfig",
    "qwen3_moe": "Qwen3MoeConfig", "qwen3_next": "Qwen3NextConfig", "recurrent_gemma": "RecurrentGemmaConfig",
    "seed_oss": "SeedOssConfig", "smollm3": "SmolLM3Config", "solar_open": "SolarOpenConfig",
    "stablelm": "StableLmConfig", "starcoder2": "Starcoder2Config", "whisper": "WhisperConfig",
}  # fmt: skip
"""Families for which `COMMON` is enough, by the configuration's class."""
PLAIN_EAGER = {
    "big_bird": "BigBirdConfig", "bigbird_pegasus": "BigBirdPegasusConfig", "falcon_mamba": "FalconMambaConfig",
    "flint": "FlintConfig", "gpt_neox_japanese": "GPTNeoXJapaneseConfig", "gpt_oss": "GptOssConfig",
    "granitemoe_swa": "GraniteMoeSWAConfig", "megatron_bert": "MegatronBertConfig",
    "mimo_v2_flash": "MiMoV2FlashConfig", "mpt": "MptConfig", "mvp": "MvpConfig", "rembert": "RemBertConfig",
    "roformer": "RoFormerConfig", "trocr": "TrOCRConfig", "vaultgemma": "VaultGemmaConfig", "xglm": "XGLMConfig",
}  # fmt: skip
"""The same, of one attention."""
PLAIN_LATENT = {
    "axk1": "AXK1Config", "axk2": "AXK2Config", "deepseek_v2": "DeepseekV2Config", "deepseek_v3": "DeepseekV3Config",
    "glm4_moe_lite": "Glm4MoeLiteConfig", "minicpm3": "MiniCPM3Config", "youtu": "YoutuConfig",
}  # fmt: skip
"""The same, with keys and values for each head."""
PLAIN_REFUSED = {
    "camembert": "CamembertConfig", "data2vec_text": "Data2VecTextConfig", "moshi": "MoshiConfig",
    "roberta_prelayernorm": "RobertaPreLayerNormConfig", "xlm_roberta": "XLMRobertaConfig",
    "xlm_roberta_xl": "XLMRobertaXLConfig",
}  # fmt: skip
"""The same, refused: their layers do not run in any order."""
ALL: dict[str, Family] = {
    **{name: Family(kind) for name, kind in PLAIN.items()},
    **{name: Family(kind, attentions=EAGER) for name, kind in PLAIN_EAGER.items()},
    **{name: Family(kind, _LATENT) for name, kind in PLAIN_LATENT.items()},
    **{name: Family(kind, expected=REFUSED) for name, kind in PLAIN_REFUSED.items()},
    "llama": Family("LlamaConfig", quick=True),
    "mistral": Family("MistralConfig", note=" (sliding window)", quick=True),
    "qwen2": Family("Qwen2Config", {"use_sliding_window": True, "max_window_layers": 2}, note=SOME_WINDOWS, quick=True),
    "qwen3": Family("Qwen3Config", quick=True),
    "gemma2": Family(
        "Gemma2Config", {"layer_types": _ALTERNATING, "query_pre_attn_scalar": 8}, EAGER, note=SOME_WINDOWS, quick=True
    ),
    "gemma3": Family("Gemma3TextConfig", {"layer_types": _ALTERNATING}, note=SOME_WINDOWS, quick=True),
    "phi3": Family("Phi3Config", {"num_key_value_heads": 4}, note=" (sliding window)", quick=True),
    "olmo2": Family("Olmo2Config", quick=True),
    "olmoe": Family("OlmoeConfig", note=" (mixture of experts)", quick=True),
    "qwen2_moe": Family("Qwen2MoeConfig", note=" (mixture of experts)", quick=True),
    "gpt2": Family("GPT2Config", quick=True),
    "gpt_neo": Family(
        "GPTNeoConfig",
        {"attention_types": [[["global", "local"], 2], [["global"], 1]], "window_size": 4},
        EAGER,
        packs=False,
        note=SOME_WINDOWS,
        quick=True,
    ),
    "gpt_neox": Family("GPTNeoXConfig", quick=True),
    "opt": Family("OPTConfig", {"word_embed_proj_dim": 16}, quick=True),
    "granite_swa": Family(
        "GraniteSWAConfig",
        {"layer_types": _ALTERNATING, "layer_rope_theta": [1e4, 1e2, 1e3, 0, 50.0]},
        EAGER,
        note=" (sliding window and rotary base by layer)",
        quick=True,
    ),
    "falcon": Family("FalconConfig", {"alibi": False}, quick=True),
    "falcon_alibi": Family(
        "FalconConfig", {"alibi": True, "multi_query": False}, packs=False, note=" (ALiBi)", quick=True
    ),
    "lfm2": Family(
        "Lfm2Config", {"layer_types": _CONVOLUTIONS}, packs=False, note=" (convolutions and attention)", quick=True
    ),
    "bailing_hybrid": Family("BailingHybridConfig", {**_LATENT, "layer_types": _LINEAR, "num_expert_group": 1}),
    "bamba": Family("BambaConfig", {"attn_layer_indices": [1, 3]}, stands_for="layers that return two things"),
    "bart": Family("BartConfig", stands_for="positions counted by place in the row"),
    "bloom": Family("BloomConfig", attentions=EAGER, stands_for="a bias with an entry for each row and head"),
    "codegen": Family("CodeGenConfig", {"rotary_dim": 4}, EAGER),
    "ctrl": Family("CTRLConfig", {"dff": 48}),
    "deepseek_v32": Family("DeepseekV32Config", _LATENT, stands_for="caches that need the configuration"),
    "deepseek_v4": Family("DeepseekV4Config", {"num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 8}, EAGER),
    "gemma4_unified_text": Family(
        "Gemma4UnifiedTextConfig", stands_for="settings of the decoder that count layers of the whole model"
    ),
    "glm_moe_dsa": Family("GlmMoeDsaConfig", _LATENT, expected="refused: hidden states alone"),
    "gptj": Family("GPTJConfig", {"rotary_dim": 4}, EAGER),
    "granitemoehybrid": Family("GraniteMoeHybridConfig", {"layer_types": _LINEAR}),
    "hrm_text": Family("HrmTextConfig", expected="refused: one ModuleList"),
    "hy_v4": Family("HYV4Config", attentions=EAGER, expected=REFUSED),
    "jamba": Family(
        "JambaConfig",
        {"attn_layer_period": 2, "attn_layer_offset": 1},
        stands_for="kinds of layers that the configuration computes",
    ),
    "llama4_text": Family(
        "Llama4TextConfig",
        {"intermediate_size_mlp": 48, "attention_chunk_size": 4, "num_experts_per_tok": 1, "floor_scale": 2},
    ),
    "longcat_flash": Family(
        "LongcatFlashConfig",
        {**_LATENT, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 2},
        expected="refused: one ModuleList",
    ),
    "mamba": Family("MambaConfig", attentions=EAGER, stands_for="a head whose weight is read by the model"),
    "openai_gpt": Family("OpenAIGPTConfig", attentions=EAGER, stands_for="layers that return lists"),
    "prophetnet": Family(
        "ProphetNetConfig",
        {
            "num_decoder_layers": NUM_LAYERS,
            "num_decoder_attention_heads": 4,
            "num_encoder_layers": NUM_LAYERS,
            "num_encoder_attention_heads": 4,
        },
        EAGER,
        expected=REFUSED,
    ),
    "roberta": Family("RobertaConfig", expected=REFUSED, stands_for="positions that begin after the padding token"),
    "rwkv": Family("RwkvConfig", {"attention_hidden_size": 32}, EAGER, expected=REFUSED),
    "xlm": Family("XLMConfig", attentions=EAGER, expected="refused: one ModuleList"),
    "xlnet": Family("XLNetConfig", {"n_layer": NUM_LAYERS, "n_head": 4, "d_inner": 48}, EAGER, expected=REFUSED),
    "xlstm": Family(
        "xLSTMConfig", {"hidden_size": 128, "num_heads": 4, "num_blocks": NUM_LAYERS}, EAGER, expected=REFUSED
    ),
    "xmod": Family("XmodConfig", {"default_language": "en_XX"}, expected=REFUSED),
    "kimi_linear": Family(
        "KimiLinearConfig", {**_LATENT, "layer_types": _LINEAR, "linear_head_dim": 8, "linear_num_heads": 4}
    ),
    "cpmant": Family("CpmAntConfig", {"dim_head": 8, "dim_ff": 48}, EAGER, expected=REFUSED),
    "dbrx": Family(
        "DbrxConfig",
        {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 48, "moe_top_k": 2},
        },
    ),
    "dots3_note_text": Family("Dots3NoteTextConfig", {**_LATENT, "use_sliding_window": False, "layer_types": None}),
    "gemma4_text": Family("Gemma4TextConfig", {"layer_types": _FULL_LAST, **_GEMMA4}, expected=REFUSED),
    "lfm2_moe": Family("Lfm2MoeConfig", {"layer_types": _CONVOLUTIONS}),
    "mamba2": Family("Mamba2Config", {"num_heads": 8, "n_groups": 2}, EAGER),
    "reformer": Family(
        "ReformerConfig",
        {
            "attn_layers": ["local", "lsh", "local", "lsh", "local"],
            "axial_pos_embds_dim": (8, 24),
            "axial_pos_shape": (16, 32),
            "attention_head_size": 8,
            "local_attn_chunk_length": 4,
            "lsh_attn_chunk_length": 4,
            "num_buckets": 2,
            "hash_seed": 0,
            "feed_forward_size": 48,
        },
        EAGER,
        expected=REFUSED,
    ),
    "roc_bert": Family(
        "RoCBertConfig",
        {
            "shape_vocab_size": 300,
            "pronunciation_vocab_size": 300,
            "shape_embed_dim": 16,
            "pronunciation_embed_dim": 16,
        },
    ),
    "falcon_h1": Family(
        "FalconH1Config", {"mamba_d_ssm": 64}, stands_for="a state along the row beside attention in each layer"
    ),
    "gemma3n_text": Family(
        "Gemma3nTextConfig",
        {"num_kv_shared_layers": 0, "layer_types": _ALTERNATING, **_GEMMA3N},
        expected=REFUSED,
        stands_for="inputs of each layer, indexed by its place",
    ),
    "zamba": Family("ZambaConfig", {"layers_block_type": _HYBRID, "attention_head_dim": 16, "num_key_value_heads": 4}),
    "zamba2": Family("Zamba2Config", _ZAMBA2, expected=REFUSED, stands_for="a hybrid whose layers are numbered"),
    "zaya": Family(
        "ZayaConfig",
        {"num_experts_per_tok": 1, "router_hidden_size": 16},
        expected="refused",
        stands_for="layers that hand on more than hidden states",
    ),
    "cohere_compass_text": Family(
        "CohereCompassTextConfig",
        {
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")
            },
            "layer_types": _ALTERNATING,
        },
    ),
    "qwen4_exp_text": Family(
        "Qwen4ExpTextConfig",
        {
            "layer_types": ["linear_attention", "indexed_attention"] * 2 + ["linear_attention"],
            "hc_lowrank": 8,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 4,
            "indexer_compress_ratio": 2,
            "output_gate_type": "silu",
        },
    ),
    "inkling_text": Family("InklingTextConfig", _INKLING),
    "inkling2_text": Family(
        "Inkling2TextConfig", {**_INKLING, "unpadded_vocab_size": VOCABULARY}, EAGER, expected=REFUSED
    ),
    # Models that take images as well.
    "llava": Family("LlavaConfig", _sees("llama", "clip_vision_model", num_hidden_layers=NUM_LAYERS), images=True),
    "llava_next": Family("LlavaNextConfig", _sees("mistral", "clip_vision_model"), images=True),
    "llava_onevision": Family(
        "LlavaOnevisionConfig", {**_sees("qwen2", "siglip_vision_model"), "video_token_index": 298}, images=True
    ),
    "qwen2_vl": Family(
        "Qwen2VLConfig",
        {"text_config": _QWEN_TEXT, "vision_config": {**_PATCHES, "embed_dim": 16, "hidden_size": 32}, **_QWEN_IDS},
        images=True,
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLConfig",
        {
            "text_config": _QWEN_TEXT,
            "vision_config": {
                **_PATCHES,
                "intermediate_size": 24,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [1],
                "window_size": 8,
            },
            **_QWEN_IDS,
        },
        images=True,
    ),
    "qwen3_vl": Family(
        "Qwen3VLConfig", {"text_config": _QWEN_TEXT, "vision_config": _QWEN3_VISION, **_QWEN_IDS}, images=True
    ),
    "qwen3_vl_moe": Family(
        "Qwen3VLMoeConfig", {"text_config": _QWEN_TEXT, "vision_config": _QWEN3_VISION, **_QWEN_IDS}, images=True
    ),
    "qwen3_5": Family(
        "Qwen3_5Config",
        {
            "text_config": {
                "rope_parameters": {**_QWEN_TEXT["rope_parameters"], "partial_rotary_factor": 1.0},
                "layer_types": _LINEAR,
            },
            "vision_config": {
                **_PATCHES,
                "intermediate_size": 24,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
            },
            **_QWEN_IDS,
        },
        images=True,
    ),
    "gemma3_vision": Family(
        "Gemma3Config",
        {
            "text_config": {"layer_types": _ALTERNATING},
            "vision_config": {"model_type": "siglip_vision_model", **_VISION},
            "mm_tokens_per_image": 4,
            "boi_token_index": 297,
            "eoi_token_index": 298,
            "image_token_index": 299,
        },
        images=True,
    ),
    "paligemma": Family("PaliGemmaConfig", _PALIGEMMA, ("sdpa",), images=True, expected=REFUSED),
    "paligemma_eager": Family(
        "PaliGemmaConfig", _PALIGEMMA, EAGER, images=True, stands_for="positions that begin at 1"
    ),
    "idefics3": Family("Idefics3Config", _sees("llama", token="image_token_id"), images=True),
    "smolvlm": Family("SmolVLMConfig", _sees("llama", token="image_token_id"), images=True),
    "internvl": Family(
        "InternVLConfig", _sees("qwen2", token="image_token_id", image_size=[16, 16], patch_size=[4, 4]), images=True
    ),
    "mistral3": Family("Mistral3Config", _sees("mistral", "pixtral", head_dim=8), images=True),
    "mllama": Family(
        "MllamaConfig", _MLLAMA, images=True, expected=REFUSED, stands_for="layers named by number in the configuration"
    ),
    "llama4": Family("Llama4Config", _LLAMA4, images=True),
    "gemma4": Family(
        "Gemma4Config",
        {
            "text_config": {"layer_types": _FULL_LAST, **_GEMMA4},
            "vision_config": None,
            "audio_config": None,
            **_GEMMA4_IDS,
        },
        images=True,
        expected=REFUSED,
    ),
    "gemma4_unified": Family(
        "Gemma4UnifiedConfig",
        {
            "text_config": {"layer_types": _FULL_LAST, "global_head_dim": 8},
            "vision_config": None,
            "audio_config": None,
            **_GEMMA4_IDS,
        },
        images=True,
    ),
    "lfm2_vl": Family(
        "Lfm2VlConfig",
        {
            "text_config": {"model_type": "lfm2", "layer_types": _CONVOLUTIONS},
            "vision_config": {"model_type": "siglip2_vision_model", **_VISION, "num_patches": 16},
            "image_token_id": 299,
        },
        images=True,
    ),
    "fuyu": Family("FuyuConfig", {"text_config": {"model_type": "persimmon"}, "image_token_id": 299}, images=True),
    "git": Family("GitConfig", {"vision_config": _VISION}, EAGER, expected="refused: [replay] refused"),
    "emu3": Family(
        "Emu3Config",
        {
            "text_config": {},
            "vq_config": {"codebook_size": 16, **_QUANTISED_PICTURES, "attn_resolutions": [4]},
            "vocabulary_map": {"<|image|>": 299},
        },
    ),
    "got_ocr2": Family(
        "GotOcr2Config",
        _sees("qwen2", output_channels=16, mlp_dim=24, global_attn_indexes=[1], window_size=2),
        EAGER,
        images=True,
    ),
    "phi4_multimodal": Family(
        "Phi4MultimodalConfig",
        {
            "num_key_value_heads": 4,
            "vision_config": {**_VISION, "feature_layer": -1, "crop_size": 16},
            "audio_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_blocks": 1,
                "num_attention_heads": 2,
                "nemo_conv_channels": 16,
                "ext_pw_out_channel": 16,
            },
        },
    ),
    "aya_vision": Family("AyaVisionConfig", _sees("cohere2", "siglip_vision_model"), images=True),
    "glm4v": Family(
        "Glm4vConfig",
        {
            "text_config": _QWEN_TEXT,
            "vision_config": {**_PATCHES, "image_size": 16, "intermediate_size": 24, "out_hidden_size": 32},
            "image_token_id": 296,
            "video_token_id": 297,
        },
        images=True,
    ),
    "mllama_lm": Family("MllamaConfig", _MLLAMA, expected=REFUSED),
    "llama4_lm": Family("Llama4Config", _LLAMA4),
    "idefics2": Family(
        "Idefics2Config",
        {
            "text_config": {"model_type": "mistral"},
            "vision_config": _VISION,
            "perceiver_config": {
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 8,
                "num_key_value_heads": 1,
                "hidden_size": 32,
            },
            "image_token_id": 299,
        },
        images=True,
    ),
    "chameleon": Family(
        "ChameleonConfig",
        {"vq_config": {"num_embeddings": 16, **_QUANTISED_PICTURES}, "vocabulary_map": {"<image>": 299}},
        images=True,
    ),
    # Further configurations of classes above.
    "llama_dynamic": Family(
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "max_position_embeddings": 16},
        stands_for="rotary embeddings that depend on the batch: the stock model itself differs",
    ),
    "phi3_longrope": Family(
        "Phi3Config",
        {
            "num_key_value_heads": 4,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
            },
        },
    ),
    "qwen3_windows": Family("Qwen3Config", {"use_sliding_window": True, "max_window_layers": 2}),
    "deepseek_v32_sparse": Family("DeepseekV32Config", {**_LATENT, "index_topk": 4}, expected=REFUSED),
    "glm_moe_dsa_shared": Family(
        "GlmMoeDsaConfig",
        {**_LATENT, "indexer_types": ["full", "shared", "full", "shared", "shared"]},
        expected=REFUSED,
    ),
    "gemma3n_shared": Family(
        "Gemma3nTextConfig",
        {"num_kv_shared_layers": 2, "layer_types": _SHARED_KINDS, **_GEMMA3N},
        expected="refused: num_kv_shared_layers",
    ),
    "gemma4_shared": Family(
        "Gemma4TextConfig",
        {"num_kv_shared_layers": 2, "layer_types": _SHARED_KINDS, **_GEMMA4},
        expected="refused: num_kv_shared_layers",
        stands_for="layers that use the keys and values of others",
    ),
    "gemma4_experts": Family(
        "Gemma4TextConfig",
        {
            "layer_types": _FULL_LAST,
            "enable_moe_block": True,
            "top_k_experts": 2,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "global_head_dim": 8,
        },
    ),
    "zamba2_adapters": Family("Zamba2Config", {**_ZAMBA2, "use_shared_attention_adapter": True}, expected=REFUSED),
    "doge_experts": Family("DogeConfig", {"is_moe": True}, expected="refused: with and without a cache"),
    "gpt_bigcode_mha": Family("GPTBigCodeConfig", {"multi_query": False}),
    "minimax_full": Family("MiniMaxConfig", {"layer_types": ["full_attention"] * 5}),
    "qwen3_moe_steps": Family("Qwen3MoeConfig", {"decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    "ernie4_5_moe_range": Family("Ernie4_5_MoeConfig", {"moe_layer_start_index": 1, "moe_layer_end_index": 3}),
    "cohere2_nope": Family("Cohere2Config", {"layer_types": _ALTERNATING}),
    "smollm3_nope": Family("SmolLM3Config", {"no_rope_layers": [1, 0, 1, 0, 1]}),
    "llama4_dense": Family(
        "Llama4TextConfig",
        {"intermediate_size_mlp": 48, "attention_chunk_size": 4, "moe_layers": [1, 3], "num_experts_per_tok": 1},
    ),
    "mpt_no_positions": Family("MptConfig", {"attn_config": {"alibi": False}}, EAGER),
}
