"""Model types of transformers that are not supported, and why.

A test compares the lists with transformers' mappings, so that types of a new
release are noticed.
"""

import functools
from collections.abc import Mapping

_REASONS: Mapping[str, str] = {
  'a mixture of experts that is not implemented': """
    afmoe aria_text beam cohere2_moe dbrx dots1 ernie4_5_moe exaone_moe
    flex_olmo flint granitemoe_swa granitemoeshared
    hunyuan_v1_moe hy_v3 jetmoe kolibri1 laguna mellum mimo_v2_flash
    sarvam_moe solar_open zaya aria ernie4_5_vl_moe glm4v_moe
    minimax_m3_vl minimax_m3_vl_text step3p7
  """,
  'attention in chunks, norms of q and k after their rotation, queries scaled '
  'by position in some layers alone, experts whose inputs are weighted': """
    llama4 llama4_text
  """,
  'latent attention, and an indexer that chooses tokens': """
    axk2 deepseek_v32 dots3_note dots3_note_text glm_moe_dsa hy_v4
    hy_v4_vl mistral_large4
  """,
  'hyper-connections, and an indexer that chooses tokens': 'deepseek_v4',
  'latent attention in a block of its own': 'axk1 longcat_flash',
  'recurrent layers or convolutions that are not implemented': """
    bailing_hybrid falcon_mamba jamba kimi_linear lara_mini lfm2_moe lfm3 mamba
    mamba2 minimax olmo_hybrid qwen4_exp qwen4_exp_text recurrent_gemma rwkv
    xlstm zamba zamba2
    inkling2_loop_text inkling2_text inkling_text inkling2 inkling2_loop
    inkling_mm_model lfm3_vl glm5_next
  """,
  'a draft of another model, whose keys and values it reads': """
    gemma4_assistant gemma4_unified_assistant
  """,
  'writes a text by diffusion': 'diffusion_gemma',
  'formulas of its own, not implemented': """
    apertus1p5_text bitnet blt cohere_compass_text diffllama doge dory
    granite_swa hrm_text modernbert-decoder persimmon
    phi4_multimodal
  """,
  'fused heads, learned positions or ALiBi': """
    biogpt bloom codegen cpmant ctrl gpt-sw3 gpt2 gpt_bigcode gpt_neo
    gpt_neox_japanese gptj mpt openai-gpt opt xglm
  """,
  'an encoder, or an encoder and a decoder': """
    bart bert bert-generation big_bird bigbird_pegasus blenderbot
    blenderbot-small camembert data2vec-text electra ernie marian mbart
    megatron-bert mvp pegasus plbart prophetnet rembert roberta
    roberta-prelayernorm roc_bert roformer trocr whisper xlm xlm-roberta
    xlm-roberta-xl xlnet xmod reformer t5gemma2 udop florence2 pix2struct
    kosmos-2.5 pp_formulanet vision-encoder-decoder blip
    encoder-decoder fsmt led longt5 m2m_100 mt5 nllb-moe pegasus_x
    switch_transformers t5 t5gemma umt5
  """,
  'made for speech or music': """
    moshi moss_transcribe_diarize musicgen musicgen_melody
    qwen2_5_omni_thinker qwen3_omni_moe_thinker
    audioflamingo3 glmasr granite_speech granite_speech_plus musicflamingo
    nemo_speechlm omniasr qwen2_audio qwen3_asr seamless_m4t seamless_m4t_v2
    vibevoice_asr voxtral voxtral_realtime
  """,
  'sees its prompt in both directions': 'paligemma pi0',
  'a classifier': 'shieldgemma2',
  'logits are scaled or not, by program (`logit_scale`)': """
    aya_vision cohere2_vision
  """,
  'a multimodal model whose wrapper or text part is not implemented': """
    apertus1p5 blip-2 chameleon cohere_compass cosmos3_edge
    cosmos3_omni deepseek_ocr2 deepseek_vl_hybrid emu3 evolla fuyu git
    glm_ocr glmga granite4_vision granite_docling hunyuan_vl
    hyperclovax_vision_v2 idefics instructblip instructblipvideo kosmos-2
    lfm2_vl minicpm_ocr minicpmv4_6 minicpmv4_7 mllama molmo2 muse_glimmer
    muse_spark nemotron_h_omni paddleocr_vl pp_chart2table qianfan_ocr
    unlimited_ocr
  """,
}


@functools.cache
def reasons() -> Mapping[str, str]:
  """`model_type` -> why it is not supported."""
  return {
    model_type: why
    for why, types in _REASONS.items()
    for model_type in types.split()
  }
