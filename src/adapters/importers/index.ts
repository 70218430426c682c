/** The methods that are served, in the order in which they are asked whether a folder is theirs. */
import type { AdapterImporter } from '../importer.js';
import { adapterHubImporter } from './adapterhub.js';
import { adaptionPromptImporter } from './adaption-prompt.js';
import { adaloraImporter } from './adalora.js';
import { ggufLoraImporter } from './gguf-lora.js';
import { loraImporter } from './lora.js';
import { mlxLoraImporter } from './mlx-lora.js';
import { cartridgeImporter, prefixTuningImporter } from './prefix-tuning.js';
import { sftImporter } from './sft.js';
import { shiraImporter } from './shira.js';
import { sparseMaskImporter } from './sparse-mask.js';
import { SOFT_PROMPT_IMPORTERS } from './soft-prompt.js';
import { supertuningImporter } from './supertuning.js';
import { s2ftImporter } from './s2ft.js';
import { boftImporter } from './boft.js';
import { c3aImporter } from './c3a.js';
import { deftImporter } from './deft.js';
import { gloraImporter } from './glora.js';
import { graloraImporter } from './gralora.js';
import { hraImporter } from './hra.js';
import { lohaImporter } from './loha.js';
import { lokrImporter } from './lokr.js';
import { oftImporter } from './oft.js';
import { roadImporter } from './road.js';
import { boneImporter, missImporter } from './miss.js';
import { monarchImporter } from './monarch.js';
import { floraImporter } from './tucker.js';
import { hydraImporter } from './hydra.js';
import { compeftImporter } from './compeft.js';
import { lolduImporter } from './loldu.js';
import { cordaImporter, sorsaImporter } from './sorsa.js';
import { dseeImporter, sltrainImporter } from './low-rank-sparse.js';
import { lnTuningImporter } from './ln-tuning.js';
import { beftImporter, bitFitImporter } from './bias-tuning.js';
import { deloraImporter } from './delora.js';
import { ia3Importer } from './ia3.js';
import { mhrImporter, polyImporter } from './poly.js';
import { refusedMethodsImporter } from './refused-methods.js';
import { ssfImporter } from './ssf.js';
import { tinyLoraImporter } from './tinylora.js';
import { trainableTokensImporter } from './trainable-tokens.js';
import { uniLoraImporter } from './unilora.js';
import { vbLoraImporter } from './vblora.js';
import { SHARED_PROJECTION_IMPORTERS } from './vera.js';
import { withSavedParts } from './saved-parts.js';

/** PEFT's tuners whose config has modules_to_save and bias; LoRA and AdaLoRA read these themselves. */
const WITH_BIAS: readonly AdapterImporter[] = [
  boftImporter,
  boneImporter,
  c3aImporter,
  deftImporter,
  deloraImporter,
  gloraImporter,
  graloraImporter,
  hraImporter,
  missImporter,
  oftImporter,
  tinyLoraImporter,
  uniLoraImporter,
  vbLoraImporter,
  ...SHARED_PROJECTION_IMPORTERS,
];

/** Those with modules_to_save alone. */
const WITHOUT_BIAS: readonly AdapterImporter[] = [
  beftImporter,
  ia3Importer,
  lnTuningImporter,
  lohaImporter,
  lokrImporter,
  polyImporter,
  roadImporter,
  shiraImporter,
  supertuningImporter,
];

export const IMPORTERS: readonly AdapterImporter[] = [
  loraImporter,
  adaloraImporter,
  mlxLoraImporter,
  ggufLoraImporter,
  s2ftImporter,
  compeftImporter,
  ...WITH_BIAS.map((importer) => withSavedParts(importer, { bias: true })),
  ...WITHOUT_BIAS.map((importer) => withSavedParts(importer, { bias: false })),
  floraImporter,
  monarchImporter,
  hydraImporter,
  lolduImporter,
  cordaImporter,
  sorsaImporter,
  dseeImporter,
  sltrainImporter,
  sftImporter,
  sparseMaskImporter,
  ...SOFT_PROMPT_IMPORTERS,
  prefixTuningImporter,
  cartridgeImporter,
  adaptionPromptImporter,
  adapterHubImporter,
  ssfImporter,
  mhrImporter,
  trainableTokensImporter,
  bitFitImporter,
  refusedMethodsImporter,
];
