"""TRL's names and ours: GRPOConfig, RLOOConfig, SFTConfig, DPOConfig (1.16), what they have of transformers'
TrainingArguments, the arguments of the trainers, and PEFT's LoraConfig.

A line: their names | our keys, `moot` (nothing to set), or `none` | what else there is to say, of `none`: why.
"""

TRL = """
model, model_name_or_path | model |
reward_funcs, reward_weights | reward | each may have a signature of its own; a list of another length than the group is an error
train_dataset, dataset_name | data.path | a hub name or files; `.map(...)` is not run
dataset_config, dataset_train_split | data.options, data.split |
num_generations | group_size |
generation_batch_size | groups_per_step | divided by `num_generations`: groups, not rows
per_device_train_batch_size, gradient_accumulation_steps | groups_per_step | rows x accumulation (or `steps_per_generation`, if more) x processes / `num_generations`; how many at once is said in tokens: `trainer.tokens_per_microbatch`
steps_per_generation | trainer.minibatches | optimizer steps of a batch: divided by `gradient_accumulation_steps`
num_iterations | trainer.epochs |
max_completion_length | rollout.max_new_tokens |
max_prompt_length | rollout.max_prompt_tokens | longer ones are left out, not cut
temperature | rollout.temperature |
generation_kwargs | rollout.stop, rollout.stop_token_ids | `stop` and `stop_token_ids`; the stop stays in the completion
chat_template_kwargs | data.chat_template_kwargs | a column of that name wins, and `tools` is a column too
shuffle_dataset | data.shuffle |
learning_rate | trainer.learning_rate |
lr_scheduler_type | trainer.schedule | in training steps; TRL's default is `linear`, here it is `constant`
warmup_steps, warmup_ratio | trainer.warmup_steps | in training steps; the ratio is of `max_steps`; a warm-up ends one step earlier
weight_decay | trainer.optimizer.weight_decay | likewise not for norms and biases
adam_beta1, adam_beta2 | trainer.optimizer.betas | TRL's default is 0.9 and 0.999, here 0.9 and 0.95
adam_epsilon | trainer.optimizer.eps |
optim | trainer.optimizer.name | `adamw_...`: `adamw`
max_grad_norm | trainer.max_grad_norm |
max_steps | max_steps | batches: optimizer steps / (`minibatches` x `epochs`)
num_train_epochs | max_epochs | 
seed | seed |
epsilon | algorithm.clip_low, algorithm.clip_high |
epsilon_high | algorithm.clip_high | with `loss_type="cispo"` less 1
delta | algorithm.dual_clip |
beta | algorithm.kl_coef | of DPO: `algorithm.beta`; of RLOO with `kl_in: reward`, `kl_estimator: k1`
loss_type | algorithm.aggregation, algorithm.loss | `grpo`: `sequence`, `dapo` and `bnpo`: `token`, `dr_grpo`: `constant`, `cispo`: the loss; of DPO `sigmoid`: `dpo`, `ipo`; or a preset
importance_sampling_level | algorithm.loss | `sequence`: `gspo`
scale_rewards | algorithm.advantage | `group`: `grpo`, `none`: `dr_grpo`
normalize_advantages | algorithm.normalise_advantages |
mask_truncated_completions | algorithm.mask_truncated |
top_entropy_quantile | algorithm.entropy_quantile | 1 less it
vllm_importance_sampling_correction, vllm_importance_sampling_mode | algorithm.correction, algorithm.correction_level | `..._truncate`: `tis`, `..._mask`: `mis`; not needed: the ratio is to the policy that sampled
vllm_importance_sampling_clip_max, vllm_importance_sampling_cap, vllm_importance_sampling_clip_min | algorithm.tis_cap, algorithm.mis_high, algorithm.mis_low |
sync_ref_model, ref_model_sync_steps | algorithm.reference_reset_steps | the reference becomes the policy as a whole
use_vllm, vllm_mode | rollout.engine | always `vllm`, beside the trainer, never in its place
vllm_gpu_memory_utilization | rollout.engine_args.gpu_memory_utilization | any vLLM argument
vllm_tensor_parallel_size | rollout.engine_args.tensor_parallel_size | with `rollout.gpus_per_replica`
gradient_checkpointing | trainer.gradient_checkpointing |
bf16, fp16 | trainer.precision |
save_steps, save_strategy | checkpoint.every_steps | in batches
save_total_limit | checkpoint.keep_last |
output_dir | run_dir |
run_name | track.notes |
project | track.project |
report_to | track.wandb, track.also |
eval_dataset, eval_strategy, eval_steps, num_generations_eval | eval | `data`, `every_steps` (in batches), `n`
r, lora_alpha, target_modules | trainer.lora.rank, trainer.lora.alpha, trainer.lora.targets | PEFT's default is q_proj and v_proj, here all linear layers
peft_config, use_peft, lora_r | trainer.lora.rank | a `LoraConfig`
max_length, max_seq_length | data.max_tokens | of `asyncrl sft`: longer rows are left out, not cut
packing, padding_free, packing_strategy, eval_packing, pad_to_multiple_of | moot | there is no padding: trajectories are packed by tokens
completion_only_loss, assistant_only_loss | moot | the loss is on answers alone
resume_from_checkpoint | moot | `asyncrl resume RUN_DIR`, or `asyncrl train RECIPE --or-resume`
logging_steps, logging_strategy, logging_first_step, logging_dir, log_completions, log_multimodal, num_completions_to_print, log_unique_prompts, disable_tqdm, log_level, include_num_input_tokens_seen | moot | every step is in `metrics.jsonl`, and completions in `samples.jsonl`
vllm_max_model_length | moot | it follows from `rollout.max_prompt_tokens` and `max_new_tokens`
vllm_server_base_url, vllm_server_host, vllm_server_port, vllm_server_timeout, vllm_group_port, vllm_model_impl, vllm_enable_sleep_mode | moot | engines are started, and get their weights, by the run
use_transformers_continuous_batching, transformers_continuous_batching_config, use_transformers_paged, cache_implementation, ds3_gather_for_generation | moot | vLLM generates
remove_unused_columns, dataloader_num_workers, dataloader_prefetch_factor, dataloader_pin_memory, dataloader_drop_last, dataset_num_proc, dataset_kwargs | moot | a reward gets all columns, and rows are read as they are drawn
processing_class, tokenizer | moot | the model's own
use_liger_kernel, torch_compile, torch_empty_cache_steps, activation_offloading, tf32, use_cpu | moot | the loss never holds all logits; `trainer.precision` and `trainer.gpus_per_rank` say the rest
disable_dropout | moot | dropout is off
dtype, torch_dtype, attn_implementation, device_map, low_cpu_mem_usage, use_cache | moot | `trainer.precision`; attention is chosen for prefix trees
do_train, do_eval, overwrite_output_dir, label_names, task_type, inference_mode, bias | moot |
per_device_eval_batch_size, eval_on_start | moot | the untrained weights are evaluated too, in batches of the engine
top_p, top_k, min_p, repetition_penalty | none | it cuts the sampled distribution, so that its log-probs are not those of the trainer
entropy_coef, use_adaptive_entropy, entropy_coef_min, entropy_coef_max, entropy_coef_delta, entropy_target | none | there is no entropy bonus; a higher `algorithm.clip_high`, or the losses `clip_cov` and `kl_cov`, keep the entropy up
ref_model_mixup_alpha | none | the reference becomes the policy as a whole
sapo_temperature_neg, sapo_temperature_pos, vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg | none | that loss is not here; `algorithm.loss` may be your own
off_policy_mask_threshold | none | `algorithm.reject_kl` leaves trajectories out by their KL divergence, of either sign of the advantage
use_bias_correction_kl, multi_objective_aggregation, reward_clip_range | none | it is not here; the reward, `algorithm.advantage` and `algorithm.loss` may be your own
vllm_structured_outputs_regex | none | it cuts the sampled distribution, so that its log-probs are not those of the trainer
max_tool_calling_iterations, tools, rollout_func, environment_factory | env | docs/environments.md
router_aux_loss_coef | none | no loss balances experts
cast_lm_head_to_fp32 | none | `trainer.precision: fp32` is for the whole model
lora_dropout, use_rslora, use_dora, modules_to_save, quantization_config, load_in_4bit, load_in_8bit | none | adapters are plain LoRA on weights that are not quantised
trust_remote_code | none | no code that comes with a model is run
revision, model_revision, model_init_kwargs | none | download that revision, and name its folder
ref_model | none | the reference is the model as the run starts
data_collator, compute_loss_func, optimizer_cls_and_kwargs, formatting_func | none | it is not here; `algorithm.loss` may be your own, and rows are taken as they are
callbacks, optimizers, compute_metrics, preprocess_logits_for_metrics | none | docs/python.md has callbacks; `trainer.optimizer` what there is of optimizers
push_to_hub, hub_model_id, hub_strategy, hub_token, hub_private_repo, log_completions_hub_repo | none | `asyncrl export RUN_DIR --push REPO`
deepspeed, fsdp, fsdp_config, accelerator_config, parallelism_config, ddp_find_unused_parameters, ddp_timeout, ddp_backend | none | `trainer.ranks` divide the model by FSDP2
save_only_model, save_safetensors, load_best_model_at_end, metric_for_best_model, greater_is_better | none | `checkpoint.keep_best: METRIC` keeps the best; checkpoints hold a `model/`
neftune_noise_alpha, label_smoothing_factor, label_smoothing, dataset_text_field, chat_template_path, eos_token, pad_token | none | it is not here
lr_scheduler_kwargs | none | `trainer.min_lr_ratio` and `trainer.decay_steps` are what there is
data_seed, auto_find_batch_size, group_by_length, average_tokens_across_devices, full_determinism, truncation_mode | none | it is not here
reward_processing_classes, optim_args, optim_target_modules, gradient_checkpointing_kwargs, torch_compile_backend, torch_compile_mode, liger_kernel_config, ddp_bucket_cap_mb, ddp_broadcast_buffers, ddp_static_graph, train_sampling_strategy, length_column_name | none | it is not here
precompute_ref_log_probs, precompute_ref_batch_size | moot | a reference is held where the loss needs one
loss_weights, ld_alpha, f_divergence_type, f_alpha_divergence_coef, use_weighting, discopop_tau | none | of DPO there are `dpo` and `ipo`; `algorithm.loss` may be your own
log_on_each_node, logging_nan_inf_filter, log_level_replica, trackio_space_id, trackio_bucket_id, trackio_static_space_id, bf16_full_eval, fp16_full_eval, eval_delay, prediction_loss_only, eval_do_concat_batches, eval_use_gather_object, eval_accumulation_steps, include_for_metrics, batch_eval_metrics, save_on_each_node, enable_jit_checkpoint, hub_always_push, hub_revision, ignore_data_skip, restore_callback_states_from_checkpoint, dataloader_persistent_workers, dataloader_multiprocessing_context, dataloader_in_order, debug, skip_memory_metrics, do_predict, local_rank | moot |
"""
