"""Names of OpenRLHF and slime, as their command lines have them (August 2026, and OpenRLHF's before), and ours. Only
for the answers to a wrong key. A line: their names | our keys, or `none` | what else there is to say, of `none`: why.
"""

OPENRLHF = """
rollout_batch_size, rollout.batch_size | groups_per_step | prompts per step
n_samples_per_prompt, rollout.n_samples_per_prompt | group_size |
train_batch_size, train.batch_size | trainer.minibatches | their number, not their size
micro_train_batch_size, micro_rollout_batch_size, train.micro_batch_size, train.max_tokens_per_gpu | trainer.tokens_per_microbatch | in tokens
pretrain, actor.model_name_or_path | model |
prompt_data, data.prompt_dataset | data.path |
input_key, data.input_key | data.prompt_column |
label_key, data.label_key | reward | a reward names the column of the answer among its parameters
apply_chat_template, data.apply_chat_template | data.chat |
generate_max_len, rollout.max_new_tokens | rollout.max_new_tokens |
prompt_max_len | rollout.max_prompt_tokens |
actor_learning_rate | trainer.learning_rate |
critic_learning_rate | trainer.critic_learning_rate |
init_kl_coef, algo.kl.init_coef | algorithm.kl_coef |
use_kl_loss, algo.kl.use_loss | algorithm.kl_in |
kl_estimator, algo.kl.estimator | algorithm.kl_estimator |
advantage_estimator, algo.advantage.estimator | algorithm.advantage |
eps_clip, actor.eps_clip | algorithm.clip_low, algorithm.clip_high |
eps_clip_low_high, actor.eps_clip_low_high | algorithm.clip_low, algorithm.clip_high |
lambd, algo.advantage.lambd | algorithm.gae_lambda |
dynamic_filtering, algo.dynamic_filtering_enable | algorithm.filter_equal_rewards |
num_episodes, train.num_episodes | max_steps | rows x episodes / `groups_per_step`
max_epochs, train.max_epochs | trainer.epochs |
remote_rm_url, reward.remote_url, reward_pretrain, reward.model_name_or_path | reward |
vllm_num_engines, vllm.num_engines | rollout.replicas |
vllm.tensor_parallel_size | rollout.engine_args.tensor_parallel_size |
vllm.gpu_memory_utilization | rollout.engine_args.gpu_memory_utilization |
actor_num_gpus_per_node, actor_num_nodes, actor.num_gpus_per_node, actor.num_nodes | trainer.ranks |
agent_func_path, train.agent_func_path | env |
async_train, train.async_enable | max_staleness |
async_queue_size, train.async_queue_size | max_staleness |
save_path, ckpt.output_dir, ckpt_path, ckpt.path | run_dir |
ckpt.save_steps | checkpoint.every_steps |
packing_samples, ds.packing_samples, zero_stage, ds.zero_stage, colocate_all_models, train.colocate_all, flash_attn | none | nothing is to be set: trajectories are packed, FSDP2 divides the model, and roles have GPUs of their own
"""

SLIME = """
rollout_max_response_len | rollout.max_new_tokens |
rollout_max_prompt_len | rollout.max_prompt_tokens |
rollout_max_context_len | env.max_context_tokens |
rollout_temperature | rollout.temperature |
rollout_stop, rollout_stop_token_ids | rollout.stop, rollout.stop_token_ids |
rollout_top_p, rollout_top_k | none | it cuts the sampled distribution, so that its log-probs are not those of the trainer
num_rollout | max_steps |
num_epoch | max_steps | rows x epochs / `groups_per_step`
global_batch_size | trainer.minibatches | their number, not their size
num_steps_per_rollout | trainer.minibatches |
max_tokens_per_gpu | trainer.tokens_per_microbatch |
kl_loss_coef | algorithm.kl_coef |
kl_loss_type | algorithm.kl_estimator |
eps_clip_high | algorithm.clip_high |
eps_clip_c | algorithm.dual_clip |
use_tis | algorithm.correction | `tis`
tis_clip | algorithm.tis_cap |
hf_checkpoint | model |
rm_type, custom_rm_path, rm_url | reward |
custom_generate_function_path | env |
rollout_num_gpus | rollout.replicas |
rollout_num_gpus_per_engine | rollout.gpus_per_replica |
update_weights_interval, over_sampling_batch_size, partial_rollout | max_staleness |
dynamic_sampling_filter_path | algorithm.filter_equal_rewards |
save_interval | checkpoint.every_steps |
eval_interval, eval_prompt_data, n_samples_per_eval_prompt | eval |
save, load | run_dir |
clip_grad | trainer.max_grad_norm |
use_wandb, wandb_project | track.wandb, track.project |
"""

COMMON = """
lr | trainer.learning_rate |
batch_size, train_size | groups_per_step | tasks per step; `group_size` is how many completions each has
num_samples, num_rollouts, n_rollouts, num_return_sequences | group_size |
max_length_completion, max_gen_tokens | rollout.max_new_tokens |
kl_coeff, kl_beta | algorithm.kl_coef |
clip_range, cliprange, clip_eps | algorithm.clip_low, algorithm.clip_high |
entropy_coeff, ent_coef | none | there is no entropy bonus; a higher `algorithm.clip_high`, or the losses `clip_cov` and `kl_cov`, keep the entropy up
steps, total_steps, num_steps, iterations | max_steps |
gpus, num_gpus, n_gpus, world_size | trainer.ranks, rollout.replicas | with `trainer.gpus_per_rank=1` and `rollout.gpus_per_replica=1`, or shares of one; `asyncrl plan RECIPE --gpus N` divides them
lora, lora_rank | trainer.lora.rank |
reward_fn, reward_function, reward_func | reward |
dataset, train_file, train_files | data.path |
output, logdir, log_dir | run_dir |
"""
