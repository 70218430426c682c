/** POST /v1/load_lora_adapter and /v1/unload_lora_adapter: vLLM's bodies, statuses and texts. Absent unless enabled. */
import { readJsonObject } from '../body.js';
import type { AppContext, RouteDeps } from '../context.js';
import { LOAD_ADAPTER_SCHEMA, UNLOAD_ADAPTER_SCHEMA } from '../schemas/adapters.js';
import { parseWire } from '../schemas/wire.js';

export async function postLoadAdapter(c: AppContext, deps: RouteDeps): Promise<Response> {
  const body = await readJsonObject(c, deps.service.limits.bodyBytes);
  const { lora_name: name, lora_path: path, load_inplace: inPlace } = parseWire(LOAD_ADAPTER_SCHEMA, body, deps, c);
  const loaded = await deps.service.manageAdapters.load({ name, path, inPlace: inPlace ?? false });
  return c.text(`Success: LoRA adapter '${loaded.name}' added successfully.`);
}

export async function postUnloadAdapter(c: AppContext, deps: RouteDeps): Promise<Response> {
  const body = await readJsonObject(c, deps.service.limits.bodyBytes);
  const { lora_name: name } = parseWire(UNLOAD_ADAPTER_SCHEMA, body, deps, c);
  const removed = await deps.service.manageAdapters.unload(name);
  return c.text(`Success: LoRA adapter '${removed.name}' removed successfully.`);
}
