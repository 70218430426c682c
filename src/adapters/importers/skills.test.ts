/** Poly and MHR in both formats: the collapse to one task equals the routed forward, and what is not one task is refused. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { f32, ImporterBench } from '../testing/importer-bench.js';
import type { BenchTensor } from '../testing/importer-bench.js';
import { lowRankAt, lowRankDelta } from '../testing/low-rank.js';
import { distance, matrix, scaled, shaped, sixteenths, sum, times, transpose, zeros } from '../testing/matrices.js';
import type { Matrix } from '../testing/matrices.js';

const bench = new ImporterBench();
after(() => bench.close());

// up_proj of the tiny model: 8 inputs, 12 outputs.
const [IN, OUT, RANK, SKILLS, TASKS] = [8, 12, 2, 3, 2];
const PATH = 'model.layers.1.mlp.up_proj';
const UP = `base_model.model.${PATH}`;
const SITE = { layer: 1, site: 'up' } as const;

/** Of skill s: A_s `[in, r]`, B_s `[r, out]`. */
const A = Array.from({ length: SKILLS }, (_, s) => shaped(sixteenths(10 + s, IN * RANK), IN, RANK));
const B = Array.from({ length: SKILLS }, (_, s) => shaped(sixteenths(20 + s, RANK * OUT), RANK, OUT));
const logits = (heads: number): number[] => sixteenths(30, TASKS * heads * SKILLS).map((value) => 3 * value);

/** Z `[heads, skills]`. */
function routing(values: readonly number[], task: number, heads: number): Matrix {
  return matrix(heads, SKILLS, (k, s) => {
    const open = Array.from(
      { length: SKILLS },
      (_, i) => 1 / (1 + Math.exp(-(values[(task * heads + k) * SKILLS + i] as number))),
    );
    return (open[s] as number) / (open.reduce((total, value) => total + value, 0) + 1e-12);
  });
}

/** ΔW of one task as the router gives it: each head of the channels mixes the factors with its own weights. */
function routed(z: Matrix): Matrix {
  const heads = z.length;
  const mixed = (
    factors: readonly Matrix[],
    rows: number,
    cols: number,
    headOf: (i: number, j: number) => number,
  ): Matrix =>
    matrix(rows, cols, (i, j) =>
      factors.reduce((total, factor, s) => total + (z[headOf(i, j)]?.[s] as number) * (factor[i]?.[j] as number), 0),
    );
  const a = mixed(A, IN, RANK, (i) => Math.floor(i / (IN / heads)));
  const b = mixed(B, RANK, OUT, (_, j) => Math.floor(j / (OUT / heads)));
  return transpose(times(a, b));
}

function peftTensors(heads: number): Record<string, BenchTensor> {
  const [n, m] = [IN / heads, OUT / heads];
  const heady = Array.from({ length: heads }, (_, k) => k);
  const a = heady.flatMap((k) => A.flatMap((factor) => factor.slice(k * n, (k + 1) * n).flat()));
  const b = heady.flatMap((k) => B.flatMap((factor) => factor.flatMap((row) => row.slice(k * m, (k + 1) * m))));
  return {
    [`${UP}.poly_lora_A`]: f32([heads, SKILLS, n, RANK], a),
    [`${UP}.poly_lora_B`]: f32([heads, SKILLS, RANK, m], b),
    [`${UP}.poly_router.module_logits`]: f32([TASKS, heads * SKILLS], logits(heads)),
  };
}

function mttlTensors(heads: number): Record<string, BenchTensor> {
  return {
    [`${PATH}.lora_a`]: f32([SKILLS, heads, IN / heads, RANK], A.flat(2)),
    [`${PATH}.lora_b`]: f32([SKILLS, RANK, heads, OUT / heads], B.flat(2)),
    [`${PATH}.selector.module_logits`]: f32([TASKS, heads * SKILLS], logits(heads)),
  };
}

const poly = (heads: number, task: number) => ({
  ...{ peft_type: 'POLY', poly_type: 'poly', r: RANK, n_tasks: TASKS, n_skills: SKILLS, n_splits: heads },
  task_id: task,
  target_modules: ['up_proj'],
});
const mhr = (heads: number, task: number) => ({
  ...{ peft_type: 'MHR', lora_rank: RANK, lora_alpha: 3, n_skills: SKILLS, n_splits: heads, task_id: task },
});

const deltaOf = async (...adapter: Parameters<ImporterBench['compile']>): Promise<Matrix> =>
  lowRankDelta(lowRankAt((await bench.compile(...adapter)).terms.terms, SITE));

test('the collapse of each task equals the routed forward, for Poly and for heads, in both formats', async () => {
  for (const heads of [1, 2, 4]) {
    for (let task = 0; task < TASKS; task += 1) {
      const wanted = routed(routing(logits(heads), task, heads));
      const peft = await deltaOf(poly(heads, task), peftTensors(heads));
      assert.ok(distance(peft, scaled(wanted, 1 / RANK)) < 1e-6);
      const mttl = await deltaOf(mhr(heads, task), mttlTensors(heads));
      assert.ok(distance(mttl, scaled(wanted, 3 / RANK)) < 1e-6);
    }
  }
});

test('one head is Poly, and heads with other logits are not', async () => {
  const z = routing(logits(1), 1, 1)[0] as readonly number[];
  const one = await deltaOf(poly(1, 1), peftTensors(1));
  const plain = matrix(2, SKILLS, (_, s) => z[s] as number);
  assert.ok(distance(one, scaled(routed(plain), 1 / RANK)) < 1e-6);
  assert.ok(distance(await deltaOf(poly(2, 1), peftTensors(2)), one) > 0.1);
});

test('mixing after the product is another function than mixing before it', async () => {
  const z = routing(logits(1), 1, 1)[0] as readonly number[];
  const wanted = A.reduce(
    (total: Matrix, a, s) => sum(total, scaled(transpose(times(a, B[s] as Matrix)), ((z[s] as number) * 3) / RANK)),
    zeros(OUT, IN),
  );
  const term = lowRankAt(
    (await bench.compile({ ...mhr(1, 1), lora_merge_after: true }, mttlTensors(1))).terms.terms,
    SITE,
  );
  assert.equal(term.a.shape[0], SKILLS * RANK);
  assert.ok(distance(lowRankDelta(term), wanted) < 1e-6);
  assert.ok(distance(await deltaOf({ ...mhr(1, 1), lora_merge_after: false }, mttlTensors(1)), wanted) > 0.1);
});

test('equal logits give the mean of the factors (MHR-µ)', async () => {
  const tensors = {
    ...peftTensors(2),
    [`${UP}.poly_router.module_logits`]: f32([TASKS, 2 * SKILLS], new Array<number>(12).fill(0.5)),
  };
  const mean = (factors: readonly Matrix[]): Matrix =>
    scaled(
      factors.reduce((a, b) => sum(a, b)),
      1 / SKILLS,
    );
  const wanted = scaled(transpose(times(mean(A), mean(B))), 1 / RANK);
  assert.ok(distance(await deltaOf(poly(2, 0), tensors), wanted) < 1e-6);
});

test('one router for all modules, as mttl has it per model', async () => {
  const { [`${PATH}.selector.module_logits`]: router, ...rest } = mttlTensors(2);
  assert.ok(router !== undefined);
  const wanted = await deltaOf(mhr(2, 1), mttlTensors(2));
  assert.deepEqual(await deltaOf(mhr(2, 1), { ...rest, 'selector.module_logits': router }), wanted);
  assert.match(
    await bench.refusal(mhr(2, 1), { ...mttlTensors(2), 'selector.module_logits': router }),
    /stands beside "selector.module_logits", which is for all modules/,
  );
});

test('a single task needs no task_id; several do', async () => {
  const single = {
    ...peftTensors(1),
    [`${UP}.poly_router.module_logits`]: f32([1, SKILLS], logits(1).slice(0, SKILLS)),
  };
  const { task_id: _, ...config } = poly(1, 0);
  assert.deepEqual(await deltaOf({ ...config, n_tasks: 1 }, single), await deltaOf(poly(1, 0), peftTensors(1)));
  for (const task of [undefined, -1, 0.5, TASKS, '1']) {
    assert.match(
      await bench.refusal({ ...config, task_id: task }, peftTensors(1)),
      /task_id is .*expected 0 to 1: the router knows 2 tasks.*make a folder of each/,
    );
  }
});

test('inventories that do not fit are refused', async () => {
  const tensors = peftTensors(2);
  assert.match(await bench.refusal({ ...poly(2, 0), n_tasks: 3 }, tensors), /n_tasks is 3, the routers have 2/);
  assert.match(await bench.refusal({ ...poly(2, 0), poly_type: 'dense' }, tensors), /poly_type is "dense"/);
  assert.match(await bench.refusal({ ...poly(3, 0) }, tensors), /n_splits is 3, which does not divide/);
  assert.match(await bench.refusal({ ...poly(2, 0), r: 1000 }, tensors), /r is 1000 for .*--max-lora-rank/);
  const stacked = { ...mhr(1, 0), lora_rank: 200, lora_merge_after: true };
  assert.match(await bench.refusal(stacked, mttlTensors(1)), /r is 600 for .*--max-lora-rank/);
  assert.match(
    await bench.refusal({ ...mhr(2, 0), lora_merge_after: true }, mttlTensors(2)),
    /lora_merge_after is true with n_splits 2/,
  );
  assert.match(
    await bench.refusal({ ...mhr(2, 0), router_granularity: 'token' }, mttlTensors(2)),
    /router_granularity/,
  );
  const other = {
    [`${UP.replace('up', 'gate')}.poly_router.module_logits`]: f32([3, 6], new Array<number>(18).fill(0)),
  };
  const gate = Object.fromEntries(
    Object.entries(tensors).map(([name, tensor]) => [name.replace('up', 'gate'), tensor]),
  );
  const both = { ...tensors, ...gate, ...other };
  assert.match(
    await bench.refusal({ ...poly(2, 0), target_modules: ['up_proj', 'gate_proj'] }, both),
    /has shape \[\d, 6\], expected \d tasks as the other modules have/,
  );
  const broken = { ...tensors, [`${UP}.poly_lora_A`]: f32([2, 3, 4, 2], new Array<number>(48).fill(3e38)) };
  const loud = { ...broken, [`${UP}.poly_router.module_logits`]: f32([2, 6], new Array<number>(12).fill(NaN)) };
  assert.match(await bench.refusal(poly(2, 0), loud), /holds NaN or infinity/);
});
