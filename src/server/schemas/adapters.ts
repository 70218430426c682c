/** POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them. */
import { z } from 'zod';
import { optional, wireSchema } from './wire.js';

export const LOAD_ADAPTER_SCHEMA = wireSchema({
  lora_name: optional(z.string()),
  lora_path: optional(z.string()),
  load_inplace: optional(z.boolean()),
});

export const UNLOAD_ADAPTER_SCHEMA = wireSchema({
  lora_name: optional(z.string()),
  /** vLLM's internal number; it never decides anything. */
  lora_int_id: optional(z.int()),
});
