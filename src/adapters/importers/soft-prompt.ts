/**
 * Soft prompts of peft → TermSet.softPrompt: PROMPT_TUNING, P_TUNING (saved after its MLP or LSTM), CPT (saved with its
 * projected delta added) and MULTITASK_PROMPT_TUNING (prompt ⊙ cols[t] rows[t] for one task t, field task_id). Key
 * `prompt_embeddings [n, hidden]`; multitask besides `prefix_task_cols [T, n, k]`, `prefix_task_rows [T, k, hidden]`.
 *
 * peft puts the rows beside the output of the base's embedding module. On Gemma that output is already scaled, and the rows
 * are not scaled again; so they are served as they are in the file.
 */
import type { JsonObject } from '../../checkpoint/strict-json.js';
import { bug } from '../../core/errors.js';
import type { ModelConfig } from '../../core/model-config.js';
import type { DenseTensor } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { integerField, refused, refuseField, refuseUnknownFields, show } from '../config-fields.js';
import { product, rounded, toDoubles } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkShape, readTensor } from '../tensor-values.js';
import { isPeftType } from './linear-tensors.js';
import { checkContext, onlyTensors, PROMPT_FIELDS, submodulesOf } from './prompt-config.js';

/** Fields of the four methods that say how the rows were made. */
const KNOWN: Readonly<Record<string, readonly string[]>> = {
  PROMPT_TUNING: ['prompt_tuning_init', 'prompt_tuning_init_text', 'tokenizer_kwargs', 'tokenizer_name_or_path'],
  P_TUNING: ['encoder_dropout', 'encoder_hidden_size', 'encoder_num_layers', 'encoder_reparameterization_type'],
  CPT: [
    'cpt_mask',
    'cpt_token_ids',
    'cpt_tokens_type_mask',
    'opt_loss_decay_factor',
    'opt_projection_epsilon',
    'opt_projection_format_epsilon',
    'opt_weighted_loss_type',
    'tokenizer_name_or_path',
  ],
  MULTITASK_PROMPT_TUNING: [
    'num_ranks',
    'num_tasks',
    'prompt_tuning_init',
    'prompt_tuning_init_state_dict_path',
    'prompt_tuning_init_task',
    'prompt_tuning_init_text',
    'task_id',
    'tokenizer_kwargs',
    'tokenizer_name_or_path',
  ],
};

function softPromptImporter(method: keyof typeof KNOWN): AdapterImporter {
  return {
    method,
    matches: (config) => isPeftType(config, method),
    compile: (folder, context) => compileSoftPrompt(method, folder, context),
  };
}

export const SOFT_PROMPT_IMPORTERS: readonly AdapterImporter[] = Object.keys(KNOWN).map(softPromptImporter);

async function compileSoftPrompt(
  method: string,
  folder: AdapterFolder,
  { model }: ImportContext,
): Promise<CompiledAdapter> {
  const { config } = folder;
  refuseField(config, 'modules_to_save', 'whole trained modules replace those of the base', 'Train it without them.');
  refuseUnknownFields(config, [...PROMPT_FIELDS, ...(KNOWN[method] ?? [])]);
  submodulesOf(config);
  const multitask = method === 'MULTITASK_PROMPT_TUNING';
  const names = multitask ? ['prompt_embeddings', 'prefix_task_cols', 'prefix_task_rows'] : ['prompt_embeddings'];
  const tensors = onlyTensors(folder, names);
  const [rows] = tensors;
  const count = integerField(config, 'num_virtual_tokens', 1);
  checkContext(count, model);
  checkShape(rows, [count, model.hiddenSize], `[${count}, ${model.hiddenSize}] (num_virtual_tokens, hidden)`);
  const softPrompt = multitask ? await foldTask(folder, tensors, model) : await readTensor(folder, rows);
  return { terms: { terms: [], softPrompt }, notes: [] };
}

async function foldTask(
  folder: AdapterFolder,
  [prompt, cols, rows]: ReturnType<typeof onlyTensors>,
  model: ModelConfig,
): Promise<DenseTensor> {
  const { config } = folder;
  const [tasks, rank] = [integerField(config, 'num_tasks', 1), integerField(config, 'num_ranks', 1)];
  const task = taskOf(config, tasks);
  const [count, hidden] = [prompt.shape[0] ?? 0, model.hiddenSize];
  if (cols === undefined || rows === undefined) bug('a name lost its tensor');
  checkShape(cols, [tasks, count, rank], `[${tasks}, ${count}, ${rank}] (num_tasks, num_virtual_tokens, num_ranks)`);
  checkShape(rows, [tasks, rank, hidden], `[${tasks}, ${rank}, ${hidden}] (num_tasks, num_ranks, hidden)`);
  const shared = toDoubles(await readTensor(folder, prompt));
  const left = toDoubles(await readTensor(folder, cols)).subarray(task * count * rank, (task + 1) * count * rank);
  const right = toDoubles(await readTensor(folder, rows)).subarray(task * rank * hidden, (task + 1) * rank * hidden);
  const mask = product(left, right, count, rank, hidden);
  return rounded(
    'the prompt of the task',
    [count, hidden],
    mask.map((value, i) => value * (shared[i] as number)),
  );
}

/** peft takes the task with each call; a served adapter is one task. */
function taskOf(config: JsonObject, tasks: number): number {
  if (tasks === 1 && config['task_id'] === undefined) return 0;
  const task = config['task_id'];
  if (typeof task === 'number' && Number.isSafeInteger(task) && task >= 0 && task < tasks) return task;
  throw refused(
    'task_id',
    `${show(task)}, expected 0 to ${tasks - 1}: the file holds ${tasks} tasks, and an adapter is served for one`,
    'Add "task_id" to adapter_config.json; for several tasks, make a folder of each.',
  );
}
