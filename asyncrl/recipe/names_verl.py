"""verl's names and ours: `verl/trainer/config/ppo_trainer.yaml` and the parts that it names (August 2026).

A line: their names | our keys, `moot` (nothing to set), or `none` | what else there is to say, of `none`: why. A name
that ends with `.*` is of all keys below it; `A.{x,y}` are A.x and A.y.
"""

VERL = """
data.train_files | data.path |
data.val_files | eval | its `data`
data.prompt_key | data.prompt_column |
data.max_prompt_length | rollout.max_prompt_tokens | longer ones are left out and counted
data.max_response_length | rollout.max_new_tokens |
data.train_batch_size | groups_per_step | prompts per step
data.shuffle | data.shuffle |
data.seed | seed |
data.apply_chat_template_kwargs.*, data.apply_chat_template_kwargs | data.chat_template_kwargs |
data.val_max_samples | eval | its `max_tasks`
actor_rollout_ref.model.path | model |
actor_rollout_ref.model.enable_gradient_checkpointing | trainer.gradient_checkpointing |
actor_rollout_ref.model.{lora_rank,lora_alpha,target_modules} | trainer.lora.rank, trainer.lora.alpha, trainer.lora.targets |
actor_rollout_ref.actor.optim.lr | trainer.learning_rate |
actor_rollout_ref.actor.optim.{lr_scheduler_type,warmup_style,min_lr_ratio} | trainer.schedule, trainer.min_lr_ratio | also `linear` and `wsd`
actor_rollout_ref.actor.optim.{lr_warmup_steps,lr_warmup_steps_ratio} | trainer.warmup_steps | the ratio is of `max_steps`
actor_rollout_ref.actor.optim.weight_decay | trainer.optimizer.weight_decay | not for norms and biases; verl's default is 0.01, here 0
actor_rollout_ref.actor.optim.betas | trainer.optimizer.betas | verl's default is 0.9 and 0.999, here 0.9 and 0.95
actor_rollout_ref.actor.optim.optimizer | trainer.optimizer.name | `AdamW`
actor_rollout_ref.actor.{grad_clip,optim.clip_grad} | trainer.max_grad_norm |
actor_rollout_ref.actor.ppo_mini_batch_size | trainer.minibatches | their number, not their size
actor_rollout_ref.actor.ppo_max_token_len_per_gpu | trainer.tokens_per_microbatch | always on
actor_rollout_ref.actor.{ppo_micro_batch_size_per_gpu,ppo_micro_batch_size} | trainer.tokens_per_microbatch | in tokens: times the longest prompt and response
actor_rollout_ref.actor.ppo_epochs | trainer.epochs |
actor_rollout_ref.actor.{clip_ratio,clip_ratio_low,clip_ratio_high} | algorithm.clip_low, algorithm.clip_high |
actor_rollout_ref.actor.clip_ratio_c | algorithm.dual_clip | verl's default is 3, here there is none
actor_rollout_ref.actor.loss_agg_mode | algorithm.aggregation | `token-mean`: `token`, `seq-mean-token-mean`: `sequence`, `seq-mean-token-sum-norm`: `constant`; of `gspo` always `sequence`
actor_rollout_ref.actor.policy_loss.loss_mode | algorithm.loss | `vanilla`: `ppo`, `geo_mean`: `gmpo`, and `gspo`, `cispo`, `clip_cov`, `kl_cov`, `dppo_tv`, `dppo_kl`
actor_rollout_ref.actor.policy_loss.{clip_cov_ratio,kl_cov_ratio} | algorithm.cov_share |
actor_rollout_ref.actor.policy_loss.{clip_cov_lb,clip_cov_ub} | algorithm.cov_low, algorithm.cov_high |
actor_rollout_ref.actor.policy_loss.ppo_kl_coef | algorithm.beta | of `kl_cov`
actor_rollout_ref.actor.{use_kl_loss,kl_loss_coef} | algorithm.kl_coef | `kl_in: loss`
actor_rollout_ref.actor.kl_loss_type | algorithm.kl_estimator | `low_var_kl`: `k3`, `kl`: `k1`, `mse`: `k2`
actor_rollout_ref.actor.fsdp_config.fsdp_size | trainer.shard_ranks |
actor_rollout_ref.rollout.n | group_size |
actor_rollout_ref.rollout.temperature | rollout.temperature |
actor_rollout_ref.rollout.name | rollout.engine | `vllm`
actor_rollout_ref.rollout.{prompt_length,response_length} | rollout.max_prompt_tokens, rollout.max_new_tokens |
actor_rollout_ref.rollout.tensor_model_parallel_size | rollout.engine_args.tensor_parallel_size | with `rollout.gpus_per_replica`
actor_rollout_ref.rollout.{gpu_memory_utilization,max_num_seqs,max_num_batched_tokens,enforce_eager,enable_prefix_caching,enable_chunked_prefill} | rollout.engine_args | of the same name, as any vLLM argument; `gpu_memory_utilization` was that of a GPU which verl's trainer shares
actor_rollout_ref.rollout.engine_kwargs.vllm.* | rollout.engine_args |
actor_rollout_ref.rollout.dtype | weights.dtype |
actor_rollout_ref.rollout.val_kwargs.{n,temperature} | eval | its `n` and `temperature`
algorithm.adv_estimator | algorithm.advantage | `gae`, `grpo`, `rloo`, `reinforce_plus_plus`: `none` and `reinforce_plus_plus_baseline`: `dr_grpo`, both with `normalise_advantages`; or a preset
algorithm.norm_adv_by_std_in_grpo | algorithm.advantage | false: `dr_grpo`
algorithm.{gamma,lam} | algorithm.gae_gamma, algorithm.gae_lambda |
algorithm.use_kl_in_reward | algorithm.kl_in | `reward`
algorithm.kl_ctrl.kl_coef | algorithm.kl_coef | with `use_kl_in_reward`
algorithm.kl_penalty | algorithm.kl_estimator | with `use_kl_in_reward`
algorithm.filter_groups.enable | algorithm.filter_equal_rewards |
algorithm.rollout_correction.{rollout_is,rollout_is_threshold} | algorithm.correction, algorithm.correction_level, algorithm.tis_cap | `tis`
critic.optim.lr | trainer.critic_learning_rate |
custom_reward_function.{path,name}, reward.custom_reward_function.{path,name} | reward | `./file.py:name`
custom_reward_function.reward_kwargs.*, reward.custom_reward_function.reward_kwargs.* | rewards.kwargs |
reward_model.overlong_buffer.len, reward.reward_kwargs.overlong_buffer_cfg.len, reward_model.reward_kwargs.overlong_buffer_cfg.len | algorithm.overlong_buffer |
trainer.total_training_steps | max_steps |
trainer.total_epochs | max_epochs |
trainer.{n_gpus_per_node,nnodes} | trainer.ranks, rollout.replicas | each role has GPUs of its own, or a share of one (`trainer.gpus_per_rank: 0.6`); `asyncrl plan` divides them best
trainer.save_freq | checkpoint.every_steps |
trainer.test_freq | eval | its `every_steps`
trainer.max_actor_ckpt_to_keep | checkpoint.keep_last |
trainer.default_local_dir | run_dir |
trainer.project_name | track.project |
trainer.experiment_name | track.notes |
trainer.logger | track.wandb, track.tensorboard, track.also |
trainer.resume_mode, trainer.resume_from_path | moot | `asyncrl resume RUN_DIR`, or `asyncrl train RECIPE --or-resume`
trainer.{val_before_train,balance_batch,log_val_generations,device,rollout_data_dir,validation_data_dir,max_critic_ckpt_to_keep,ray_wait_register_center_timeout,use_v1,esi_redundant_time}, trainer.v1.* | moot | the untrained weights are evaluated, ranks are balanced, samples are kept
data.{filter_overlong_prompts,filter_overlong_prompts_workers,truncation,return_raw_chat,return_raw_input_ids,return_full_prompt,reward_fn_key,val_batch_size,dataloader_num_workers,use_shm,tokenizer,validation_shuffle,return_multi_modal_inputs,image_patch_size} | moot | rows are taken as they are, and prompts are never cut
actor_rollout_ref.model.{use_remove_padding,use_fused_kernels,use_liger,use_shm}, actor_rollout_ref.model.fused_kernel_options.* | moot | there is no padding, and the loss never holds all logits
actor_rollout_ref.actor.{use_dynamic_bsz,strategy,shuffle,data_loader_seed,use_torch_compile,entropy_from_logits_with_chunking,entropy_checkpointing,use_prefix_grouper,calculate_entropy,use_remove_padding,use_fused_kernels,rollout_n}, actor_rollout_ref.actor.checkpoint.*, actor_rollout_ref.actor.optim.total_training_steps | moot | micro-batches are packed by tokens, as prefix trees
actor_rollout_ref.actor.fsdp_config.{reshard_after_forward,forward_prefetch,model_dtype,dtype,use_orig_params,use_torch_compile,entropy_from_logits_with_chunking,strategy,seed}, actor_rollout_ref.actor.fsdp_config.wrap_policy.* | moot | `trainer.precision`; layers are divided one by one
actor_rollout_ref.rollout.{mode,free_cache_engine,load_format,disable_log_stats,layered_summon,do_sample,calculate_log_probs,skip_tokenizer_init,log_prob_micro_batch_size,log_prob_micro_batch_size_per_gpu,log_prob_use_dynamic_bsz,log_prob_max_token_len_per_gpu,seed,max_model_len,multi_stage_wake_up}, actor_rollout_ref.rollout.checkpoint_engine.*, actor_rollout_ref.rollout.agent.num_workers, actor_rollout_ref.rollout.val_kwargs.do_sample | moot | engines run beside the trainer, and say the log-probs of what they sample
actor_rollout_ref.ref.*, actor_rollout_ref.hybrid_engine, actor_rollout_ref.nccl_timeout | moot | a reference is held where `algorithm.kl_coef` asks for it
reward_model.{reward_manager,launch_reward_fn_async,num_workers,use_reward_loop}, reward.num_workers, reward.reward_manager.* | moot | the signature decides how a reward is called; `rewards.workers` are its processes
algorithm.filter_groups.{metric,max_num_gen_batches,max_inflight_gen_batches} | moot | the reward decides; `budgets.max_consecutive_filtered_groups` ends a run that finds none
ray_kwargs.*, ray_init.*, global_profiler.*, transfer_queue.*, hydra.*, actor_rollout_ref.actor.profiler.*, actor_rollout_ref.rollout.profiler.* | moot | Ray is started by the run, or named by `ray_address`; traces are in `trace.json`
actor_rollout_ref.rollout.{top_p,top_k} | none | it cuts the sampled distribution, so that its log-probs are not those of the trainer
actor_rollout_ref.rollout.val_kwargs.{top_p,top_k} | none | evaluations sample by temperature alone
actor_rollout_ref.actor.entropy_coeff | none | there is no entropy bonus; a higher `algorithm.clip_high`, or the losses `clip_cov` and `kl_cov`, keep the entropy up
actor_rollout_ref.actor.fsdp_config.{param_offload,optimizer_offload,offload_policy}, actor_rollout_ref.model.enable_activation_offload | none | nothing is offloaded; more `trainer.ranks`, or `trainer.lora.rank`
actor_rollout_ref.actor.{ulysses_sequence_parallel_size,fsdp_config.ulysses_sequence_parallel_size} | none | sequences are not divided among ranks
actor_rollout_ref.actor.megatron.*, actor_rollout_ref.actor.veomni.*, actor_rollout_ref.actor.torchtitan.*, actor_rollout_ref.rollout.{expert_parallel_size,data_parallel_size,pipeline_model_parallel_size} | none | `trainer.ranks` divide the model by FSDP2, `rollout.replicas` the prompts
actor_rollout_ref.model.{trust_remote_code,external_lib,override_config,custom_chat_template,tokenizer_path,hf_config_path,lora_adapter_path,exclude_modules}, actor_rollout_ref.model.override_config.*, actor_rollout_ref.model.lora.*, actor_rollout_ref.model.mtp.* | none | a model is taken as its folder has it
actor_rollout_ref.rollout.multi_turn.*, actor_rollout_ref.rollout.agent.*, data.tool_config_path, data.function_tool_path | env | docs/environments.md
actor_rollout_ref.rollout.engine_kwargs.sglang.*, actor_rollout_ref.rollout.engine_kwargs.trtllm.* | none | the engine is vLLM, or your own
actor_rollout_ref.actor.{loss_scale_factor,tau_pos,tau_neg,freeze_vision_tower}, actor_rollout_ref.actor.optim.{num_cycles,override_optimizer_config,optimizer_impl,zero_indexed_step}, actor_rollout_ref.actor.policy_loss.dro_beta, actor_rollout_ref.actor.router_replay.* | none | it is not here
algorithm.kl_ctrl.{type,horizon,target_kl} | none | the coefficient is constant
algorithm.use_pf_ppo, algorithm.pf_ppo.*, algorithm.rollout_correction.* | none | it is not here; `algorithm.correction` and `algorithm.advantage` may be your own
data.{train_max_samples,gen_batch_size,image_key,video_key,audio_key}, data.custom_cls.*, data.sampler.*, data.datagen.* | none | rows are taken as they are, and are text
critic.* | none | the critic has the trainer's settings, and `trainer.critic_learning_rate`
reward_model.*, reward.reward_model.*, reward.sandbox_fusion.*, sandbox_fusion.*, reward.reward_kwargs.* | none | `asyncrl.rewards.model:SequenceClassifier` is a reward model; a reward of your own asks whom it likes (docs/rewards.md)
distillation.* | none | `algorithm.teacher` (docs/distillation.md)
trainer.{critic_warmup,val_only,default_hdfs_dir,del_local_ckpt_after_load} | none | it is not here; `asyncrl eval` scores a model alone
actor_rollout_ref.actor.fsdp_config.*, actor_rollout_ref.actor.qat.*, actor_rollout_ref.actor.{calculate_sum_pi_squared,entropy_from_logits_chunk_size,pad_to_length}, actor_rollout_ref.model.tiled_mlp.*, actor_rollout_ref.rollout.{trace,prometheus,disaggregation}.*, skip.* | none | it is not here
actor_rollout_ref.rollout.{nnodes,n_gpus_per_node,full_determinism,ignore_eos,cudagraph_capture_sizes,logprobs_mode,scheduling_policy,over_sample_rate,enable_rollout_routing_replay,moe_load_balance_metrics_interval,quantization,quantization_config_file,mtp,qat}, actor_rollout_ref.rollout.engine_kwargs.{vllm,sglang,trtllm}, data.{trust_remote_code,mm_processor_kwargs} | none | what vLLM has of it is in `rollout.engine_args`
"""
