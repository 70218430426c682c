/**
 * SSF (scaling and shifting features, Lian et al. 2022): what a module gives becomes γ ⊙ z + β. The paper's files are those of
 * vision models; for a language model ours are peft_type "SSF" with `<module>.ssf_scale [n]` and `<module>.ssf_shift [n]` (one
 * of the two may be absent) on linears and norms.
 *
 * On a linear, z = W x + b: DIAG g = γ, c = (γ − 1) ⊙ b + β. On a norm γ joins its weight (OVERRIDE). β of a norm before linears
 * is what they read besides, W (n + β): each gets W β as a shift, scaled by its own γ. β of a norm after a sub-block
 * (Gemma) is added to the residual stream, by a BOTTLENECK whose products are zero. β between q_norm or k_norm and RoPE
 * cannot be moved to another place and is refused.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SiteName, SiteRef } from '../../core/model-config.js';
import type { DiagTerm, Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { baseTimes } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { isLinear, siteShape } from '../module-place.js';
import { checkFolded, floatTensor, readFloats, wrongTensor } from '../tensor-values.js';
import { scaledOutput } from './ia3.js';
import { checkPeftConfig, expectTensor, isPeftType } from './linear-tensors.js';
import { groupModules } from './module-tensors.js';
import type { PlacedTensors } from './module-tensors.js';

const [SCALE, SHIFT] = ['ssf_scale', 'ssf_shift'] as const;

export const ssfImporter: AdapterImporter = {
  method: 'SSF',
  matches: (config) => isPeftType(config, 'SSF'),
  compile: compileSsf,
};

/** The linears that read a norm's result, and nothing else does. */
const READERS: ReadonlyMap<SiteName, readonly SiteName[]> = new Map<SiteName, readonly SiteName[]>([
  ['attnNorm', ['q', 'k', 'v']],
  ['mlpNorm', ['gate', 'up']],
  ['finalNorm', ['head']],
]);
/** Norms whose result joins the residual stream, and the site where it does. */
const JOINS: ReadonlyMap<SiteName, SiteName> = new Map<SiteName, SiteName>([
  ['postAttnNorm', 'residualAttn'],
  ['postMlpNorm', 'residualMlp'],
]);

async function compileSsf(folder: AdapterFolder, context: ImportContext): Promise<CompiledAdapter> {
  refuseVision(folder);
  const modules = groupModules(folder, context.model, [SCALE, SHIFT]);
  const notes = checkPeftConfig(folder.config, [], modules);
  for (const module of modules) checkModule(module);
  const linears = new LinearScales();
  const terms: Term[] = [];
  for (const module of modules) {
    const [scale, shift] = [await valuesOf(folder, module, SCALE), await valuesOf(folder, module, SHIFT)];
    if (isLinear(siteOf(module))) linears.add(module, scale, shift);
    else terms.push(...(await normTerms(context, module, scale, shift, linears)));
  }
  return { terms: { terms: [...linears.terms(context), ...terms] }, notes };
}

function siteOf({ place }: PlacedTensors): SiteName {
  return place.sites[0] as SiteName;
}

/** `[out]` on a linear, `[width]` on a norm. */
function sizeOf(module: PlacedTensors): number {
  return isLinear(siteOf(module)) ? module.out : module.in;
}

function checkModule(module: PlacedTensors): void {
  const site = siteOf(module);
  if (site === 'embedding') {
    throw wrongTensor(
      `${quoteName(module.path)} is the embedding, which SSF is not served on (all of its rows would be replaced)`,
      'Train it on linears and norms, or merge it into its base and serve the result with --model.',
    );
  }
  if ((site === 'qNorm' || site === 'kNorm') && module.tensors.has(SHIFT)) {
    throw wrongTensor(
      `${quoteName(module.path)} has a shift between its norm and the rotation by position`,
      'Train it with a scale alone there.',
    );
  }
  for (const name of [SCALE, SHIFT]) if (module.tensors.has(name)) expectTensor(module, name, [sizeOf(module)]);
}

async function valuesOf(folder: AdapterFolder, module: PlacedTensors, name: string): Promise<Float32Array | undefined> {
  const tensor = module.tensors.get(name);
  return tensor === undefined ? undefined : readFloats(folder, tensor);
}

/** Of the linears: γ, β, and W β of the norm before. */
class LinearScales {
  readonly #sites = new Map<
    string,
    { site: SiteRef; scale?: Float32Array; shift?: Float32Array; inner?: Float64Array }
  >();

  add(module: PlacedTensors, scale: Float32Array | undefined, shift: Float32Array | undefined): void {
    for (const { site, firstRow, rows } of module.parts) {
      const entry = this.#entry(site);
      if (scale !== undefined) entry.scale = scale.slice(firstRow, firstRow + rows);
      if (shift !== undefined) entry.shift = shift.slice(firstRow, firstRow + rows);
    }
  }

  addInner(site: SiteRef, inner: Float64Array): void {
    this.#entry(site).inner = inner;
  }

  terms({ base }: ImportContext): DiagTerm[] {
    return [...this.#sites.values()].map(({ site, scale, shift, inner }) => {
      const total = inner?.map((value, i) => value * (scale?.[i] ?? 1) + (shift?.[i] ?? 0)) ?? shift;
      if (scale !== undefined) return scaledOutput(base, site, scale, total);
      const c = Float32Array.from(total ?? []);
      return { kind: 'diag', site, c: checkFolded(`the shift at ${site.site} of layer ${site.layer}`, c) };
    });
  }

  #entry(site: SiteRef): { site: SiteRef; scale?: Float32Array; shift?: Float32Array; inner?: Float64Array } {
    const key = `${site.layer} ${site.site}`;
    const entry = this.#sites.get(key) ?? { site };
    this.#sites.set(key, entry);
    return entry;
  }
}

async function normTerms(
  { model, base }: ImportContext,
  module: PlacedTensors,
  scale: Float32Array | undefined,
  shift: Float32Array | undefined,
  linears: LinearScales,
): Promise<Term[]> {
  const { layer } = module;
  const site = { layer, site: siteOf(module) };
  const terms: Term[] = [];
  if (scale !== undefined) {
    // Gemma's 1 + w is already in what the base gives.
    const values = base.weight(site, 0, 1).map((weight, i) => weight * (scale[i] as number));
    const checked = checkFolded(`the scaled norm ${module.path}`, values);
    terms.push({ kind: 'override', site, values: floatTensor([1, values.length], checked) });
  }
  if (shift === undefined) return terms;
  const join = JOINS.get(site.site);
  if (join !== undefined) terms.push(constantTerm({ layer, site: join }, shift));
  for (const reader of READERS.get(site.site) ?? []) {
    const target = { layer, site: reader };
    const { out, in: width } = siteShape(model, reader);
    const parts = [{ site: target, firstRow: 0, rows: out }];
    linears.addInner(target, await baseTimes(base, { parts, out, in: width }, Float64Array.from(shift), 1));
  }
  return terms;
}

/** t' = t + β. */
function constantTerm(site: SiteRef, shift: Float32Array): Term {
  const [down, up] = [new Float32Array(shift.length), new Float32Array(shift.length)];
  return {
    kind: 'bottleneck',
    site,
    placement: 'sequential',
    activation: 'identity',
    down: floatTensor([1, shift.length], down),
    up: floatTensor([shift.length, 1], up),
    upBias: shift,
    scale: 1,
  };
}

function refuseVision(folder: AdapterFolder): void {
  const numbered = [...folder.tensors.keys()].find((name) => /ssf_(?:scale|shift)_[0-9]+$/.test(name));
  if (numbered === undefined) return;
  throw wrongTensor(
    `${quoteName(numbered)} is named by a number within a block of a vision transformer`,
    'For a language model, name the module that is scaled: "model.layers.0.self_attn.q_proj.ssf_scale".',
  );
}
