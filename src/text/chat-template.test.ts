import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import test from 'node:test';
import { createTemplateRenderer, type TemplateRenderer } from './chat-template.js';
import { TEXT_LIMITS } from './limits.js';

const clock = { nowMs: () => 0, unixSeconds: () => 0 };

async function withRenderer(
  deadlineMs: number,
  body: (renderer: TemplateRenderer) => Promise<void>,
  threads = 2,
): Promise<void> {
  const renderer = createTemplateRenderer({ clock, deadlineMs, threads });
  try {
    await body(renderer);
  } finally {
    await renderer.close();
  }
}

/** A template that would run for minutes. */
const SLOW =
  '{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}';

test('a template that overruns fails alone, and the next one is served by a new thread', async () => {
  await withRenderer(
    250,
    async (renderer) => {
      await assert.rejects(renderer.render(SLOW, {}), { code: 'invalid_template', message: /longer than 250 ms/ });
      assert.equal(await renderer.render('{{ 1 + 1 }}', {}, { deadlineMs: 20_000 }), '2');
      await assert.rejects(renderer.render(SLOW, {}), { code: 'invalid_template' });
      assert.equal(await renderer.render('again', {}, { deadlineMs: 20_000 }), 'again');
    },
    1,
  );
});

test('a slow template does not hold up the others', async () => {
  let slowEnded = false;
  let slow: Promise<unknown> | undefined;
  await withRenderer(60_000, async (renderer) => {
    slow = renderer.render(SLOW, {}).catch(() => (slowEnded = true));
    for (let i = 0; i < 20; i += 1) assert.equal(await renderer.render('{{ i }}', { i }), String(i));
    assert.equal(slowEnded, false);
  });
  await slow;
  assert.equal(slowEnded, true);
});

test('hostile templates are refused with what is wrong with them', async () => {
  await withRenderer(20_000, async (renderer) => {
    const hostile: [string, RegExp][] = [
      ['{% for %}', /refused/],
      ["{{ raise_exception('no such role') }}", /no such role/],
      [`${'('.repeat(20_000)}${')'.repeat(20_000)}`.replace(/^/, '{{ ').concat(' }}'), /stack|refused/i],
      ['{{ range(99999999) }}', /range\(\) of 99999999 items/],
      ['{{ messages.constructor.constructor("return process")() }}', /refused/],
      ['{{ undefined_function() }}', /refused/],
      ["{{ 'a' | no_such_filter }}", /no_such_filter|refused/],
    ];
    for (const [template, message] of hostile) {
      await assert.rejects(
        renderer.render(template, { messages: [] }),
        { code: 'invalid_template', message },
        template.slice(0, 60),
      );
    }
    assert.equal(await renderer.render('{{ (1).__proto__ }}{{ messages.__proto__ }}ok', { messages: [] }), 'ok');
  });
});

test('a template that eats memory takes its thread only', async () => {
  await withRenderer(20_000, async (renderer) => {
    const eater =
      '{% set ns = namespace(a=[1,2,3,4]) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}';
    await assert.rejects(renderer.render(eater, {}), { code: 'invalid_template' });
    assert.equal(await renderer.render('ok', {}), 'ok');
  });
});

test('output and template size are bounded', async () => {
  await withRenderer(20_000, async (renderer) => {
    const million = '{% for i in range(1024) %}{{ x }}{% endfor %}';
    const x = 'x'.repeat(TEXT_LIMITS.renderedChars / 1024);
    assert.equal((await renderer.render(million, { x })).length, TEXT_LIMITS.renderedChars);
    await assert.rejects(renderer.render(`${million}y`, { x }), { code: 'request_too_large' });
    await assert.rejects(renderer.render('x'.repeat(TEXT_LIMITS.templateBytes + 1), {}), { code: 'invalid_template' });
  });
});

test('a hundred renderings at once all come back to their callers', async () => {
  await withRenderer(20_000, async (renderer) => {
    const texts = await Promise.all(
      Array.from({ length: 100 }, (_, i) => renderer.render(`t${i % 20} {{ i }}`, { i })),
    );
    assert.deepEqual(
      texts,
      Array.from({ length: 100 }, (_, i) => `t${i % 20} ${i}`),
    );
  });
});

test('a compiled template renders the same every time', async () => {
  await withRenderer(
    20_000,
    async (renderer) => {
      const template =
        '{%- macro m(a) -%}{%- for k in [1, 2] -%}{% if k == 1 %}{% set seen = a %}{% endif %}{{ k }}{{ seen }}{{ kwargs }} {% endfor -%}{%- endmacro -%}' +
        '{{ m(3, z=4) }}';
      const first = await renderer.render(template, {});
      assert.equal(first, '13{"z": 4} 2{"z": 4} ');
      assert.equal(await renderer.render(template, {}), first);
    },
    1,
  );
});

test('after close nothing is rendered, and what waited is told so', async () => {
  const renderer = createTemplateRenderer({ clock, deadlineMs: 20_000 });
  const waiting = renderer.render(SLOW, {});
  const refused = assert.rejects(waiting, { code: 'shutting_down' });
  await renderer.close();
  await refused;
  await assert.rejects(renderer.render('x', {}), { code: 'shutting_down' });
});

test('idle threads do not keep the process alive', () => {
  const url = new URL('./chat-template.js', import.meta.url).href;
  const script =
    `import { createTemplateRenderer } from ${JSON.stringify(url)};` +
    'const renderer = createTemplateRenderer({ clock: { nowMs: () => 0, unixSeconds: () => 0 }, deadlineMs: 20000 });' +
    "process.stdout.write(await renderer.render('{{ 6 * 7 }}', {}));";
  const run = spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8', timeout: 20_000 });
  assert.equal(run.stdout, '42');
  assert.equal(run.status, 0, run.stderr);
});
