"""Families of language models as data: one line a configuration, tiny and random, nothing downloaded.

`COMMON` holds the sizes that all of them share, under every name that configurations have for them. A configuration
class takes from it what it has a field for; a row's own settings stand above that. `tests/tiny.py` makes the models,
`python -m tests.families_survey` runs every row, and the rows marked `quick` are those of `make test`.
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
    "index_topk": 4,
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
        note: what is special about the configuration, for the README's table.
        expected: "right", or "refused: " and words that the refusal holds.
        quick: whether `make test` runs it.
        stands_for: the kind of model or of fault that it stands for, where another row would not show it.
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
    return kind(**{**common, **settings})


EAGER = ("eager",)
_ALTERNATING = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
ALL: dict[str, Family] = {
    "llama": Family("LlamaConfig", quick=True),
    "mistral": Family("MistralConfig", note=" (sliding window)", quick=True),
    "qwen2": Family(
        "Qwen2Config",
        {"use_sliding_window": True, "max_window_layers": 2},
        note=" (sliding window in some layers)",
        quick=True,
    ),
    "qwen3": Family("Qwen3Config", quick=True),
    "gemma2": Family(
        "Gemma2Config",
        {"layer_types": _ALTERNATING, "query_pre_attn_scalar": 8},
        EAGER,
        note=" (sliding window in some layers)",
        quick=True,
    ),
    "gemma3": Family(
        "Gemma3TextConfig", {"layer_types": _ALTERNATING}, note=" (sliding window in some layers)", quick=True
    ),
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
        note=" (sliding window in some layers)",
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
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention", "conv", "full_attention", "conv"]},
        packs=False,
        note=" (convolutions and attention)",
        quick=True,
    ),
    "afmoe": Family("AfmoeConfig"),
    "apertus": Family("ApertusConfig"),
    "arcee": Family("ArceeConfig"),
    "aria_text": Family("AriaTextConfig"),
    "axk1": Family("AXK1Config"),
    "axk2": Family("AXK2Config"),
    "bailing_hybrid": Family("BailingHybridConfig"),
    "bamba": Family("BambaConfig"),
    "bart": Family("BartConfig"),
    "beam": Family("BeamConfig"),
    "bert": Family("BertConfig"),
    "bert_generation": Family("BertGenerationConfig"),
    "big_bird": Family("BigBirdConfig", attentions=EAGER),
    "bigbird_pegasus": Family("BigBirdPegasusConfig", attentions=EAGER),
    "biogpt": Family("BioGptConfig"),
    "bitnet": Family("BitNetConfig"),
    "blenderbot": Family("BlenderbotConfig"),
    "blenderbot_small": Family("BlenderbotSmallConfig"),
    "bloom": Family("BloomConfig", attentions=EAGER),
    "camembert": Family("CamembertConfig"),
    "codegen": Family("CodeGenConfig", attentions=EAGER),
    "cohere": Family("CohereConfig"),
    "cohere2": Family("Cohere2Config"),
    "cohere2_moe": Family("Cohere2MoeConfig"),
    "ctrl": Family("CTRLConfig"),
    "cwm": Family("CwmConfig"),
    "data2vec_text": Family("Data2VecTextConfig"),
    "deepseek_v2": Family("DeepseekV2Config"),
    "deepseek_v3": Family("DeepseekV3Config"),
    "deepseek_v32": Family("DeepseekV32Config"),
    "deepseek_v4": Family("DeepseekV4Config", attentions=EAGER),
    "diffllama": Family("DiffLlamaConfig"),
    "doge": Family("DogeConfig"),
    "dots1": Family("Dots1Config"),
    "electra": Family("ElectraConfig"),
    "ernie": Family("ErnieConfig"),
    "ernie4_5": Family("Ernie4_5Config"),
    "ernie4_5_moe": Family("Ernie4_5_MoeConfig"),
    "exaone4": Family("Exaone4Config"),
    "exaone_moe": Family("ExaoneMoeConfig"),
    "falcon_mamba": Family("FalconMambaConfig", attentions=EAGER),
    "flex_olmo": Family("FlexOlmoConfig"),
    "flint": Family("FlintConfig", attentions=EAGER),
    "gemma": Family("GemmaConfig"),
    "gemma4_unified_text": Family("Gemma4UnifiedTextConfig"),
    "glm": Family("GlmConfig"),
    "glm4": Family("Glm4Config"),
    "glm4_moe": Family("Glm4MoeConfig"),
    "glm4_moe_lite": Family("Glm4MoeLiteConfig"),
    "glm_moe_dsa": Family("GlmMoeDsaConfig"),
    "gpt_bigcode": Family("GPTBigCodeConfig"),
    "gpt_neox_japanese": Family("GPTNeoXJapaneseConfig", attentions=EAGER),
    "gpt_oss": Family("GptOssConfig", attentions=EAGER),
    "gptj": Family("GPTJConfig", attentions=EAGER),
    "granite": Family("GraniteConfig"),
    "granitemoe": Family("GraniteMoeConfig"),
    "granitemoe_swa": Family("GraniteMoeSWAConfig", attentions=EAGER),
    "granitemoehybrid": Family("GraniteMoeHybridConfig"),
    "granitemoeshared": Family("GraniteMoeSharedConfig"),
    "helium": Family("HeliumConfig"),
    "hrm_text": Family("HrmTextConfig"),
    "hunyuan_v1_dense": Family("HunYuanDenseV1Config"),
    "hunyuan_v1_moe": Family("HunYuanMoEV1Config"),
    "hy_v3": Family("HYV3Config"),
    "hy_v4": Family("HYV4Config", attentions=EAGER),
    "hyperclovax": Family("HyperCLOVAXConfig"),
    "internlm3": Family("InternLM3Config"),
    "iquestcoder": Family("IQuestCoderConfig"),
    "jais2": Family("Jais2Config"),
    "jamba": Family("JambaConfig"),
    "jetmoe": Family("JetMoeConfig"),
    "kolibri1": Family("Kolibri1Config"),
    "laguna": Family("LagunaConfig"),
    "lfm3": Family("Lfm3Config"),
    "llama4_text": Family("Llama4TextConfig"),
    "longcat_flash": Family("LongcatFlashConfig"),
    "mamba": Family("MambaConfig", attentions=EAGER),
    "marian": Family("MarianConfig"),
    "mbart": Family("MBartConfig"),
    "megatron_bert": Family("MegatronBertConfig", attentions=EAGER),
    "mellum": Family("MellumConfig"),
    "mimo_v2_flash": Family("MiMoV2FlashConfig", attentions=EAGER),
    "minicpm3": Family("MiniCPM3Config"),
    "minimax": Family("MiniMaxConfig"),
    "minimax_m2": Family("MiniMaxM2Config"),
    "minimax_m3_vl_text": Family("MiniMaxM3VLTextConfig"),
    "ministral": Family("MinistralConfig"),
    "ministral3": Family("Ministral3Config"),
    "mixtral": Family("MixtralConfig"),
    "modernbert_decoder": Family("ModernBertDecoderConfig"),
    "moshi": Family("MoshiConfig"),
    "mpt": Family("MptConfig", attentions=EAGER),
    "mvp": Family("MvpConfig", attentions=EAGER),
    "nanochat": Family("NanoChatConfig"),
    "nemotron": Family("NemotronConfig"),
    "nemotron_h": Family("NemotronHConfig"),
    "olmo": Family("OlmoConfig"),
    "olmo3": Family("Olmo3Config"),
    "olmo_hybrid": Family("OlmoHybridConfig"),
    "openai_gpt": Family("OpenAIGPTConfig", attentions=EAGER),
    "pegasus": Family("PegasusConfig"),
    "persimmon": Family("PersimmonConfig"),
    "phi": Family("PhiConfig"),
    "phimoe": Family("PhimoeConfig"),
    "plbart": Family("PLBartConfig"),
    "prophetnet": Family("ProphetNetConfig", attentions=EAGER),
    "qwen3_5_moe_text": Family("Qwen3_5MoeTextConfig"),
    "qwen3_5_text": Family("Qwen3_5TextConfig"),
    "qwen3_moe": Family("Qwen3MoeConfig"),
    "qwen3_next": Family("Qwen3NextConfig"),
    "recurrent_gemma": Family("RecurrentGemmaConfig"),
    "rembert": Family("RemBertConfig", attentions=EAGER),
    "roberta": Family("RobertaConfig"),
    "roberta_prelayernorm": Family("RobertaPreLayerNormConfig"),
    "roformer": Family("RoFormerConfig", attentions=EAGER),
    "rwkv": Family("RwkvConfig", attentions=EAGER),
    "seed_oss": Family("SeedOssConfig"),
    "smollm3": Family("SmolLM3Config"),
    "solar_open": Family("SolarOpenConfig"),
    "stablelm": Family("StableLmConfig"),
    "starcoder2": Family("Starcoder2Config"),
    "trocr": Family("TrOCRConfig", attentions=EAGER),
    "vaultgemma": Family("VaultGemmaConfig", attentions=EAGER),
    "whisper": Family("WhisperConfig"),
    "xglm": Family("XGLMConfig", attentions=EAGER),
    "xlm": Family("XLMConfig", attentions=EAGER),
    "xlm_roberta": Family("XLMRobertaConfig"),
    "xlm_roberta_xl": Family("XLMRobertaXLConfig"),
    "xlnet": Family("XLNetConfig", attentions=EAGER),
    "xlstm": Family("xLSTMConfig", attentions=EAGER),
    "xmod": Family("XmodConfig"),
    "youtu": Family("YoutuConfig"),
}
