/** What test/tidy/check.ts holds the repository to. To change a rule, change a line here and say why beside it. */

/** Folders of src/ and what their files may import, beside their own folder. A path allows that one file. */
export const IMPORTS: Readonly<Record<string, readonly string[]>> = {
  core: [],
  config: ['core'],
  telemetry: ['core'],
  native: ['core', 'telemetry'],
  checkpoint: ['core', 'native/binding-types'],
  download: ['core', 'native/binding-types'],
  adapters: ['core', 'telemetry', 'native', 'checkpoint'],
  tenancy: ['core', 'telemetry'],
  router: ['core', 'telemetry', 'adapters', 'tenancy'],
  rollout: ['core', 'telemetry', 'adapters', 'tenancy'],
  fusion: ['core', 'telemetry', 'adapters', 'tenancy'],
  text: ['core', 'checkpoint'],
  engine: ['core', 'telemetry', 'native', 'checkpoint', 'adapters'],
  service: [
    'core',
    'telemetry',
    'native',
    'checkpoint',
    'download',
    'adapters',
    'tenancy',
    'router',
    'rollout',
    'fusion',
    'text',
    'engine',
  ],
  server: ['core', 'telemetry', 'service'],
};
/** What loadtest/ may import of src/: words that all share, and nothing that knows a server from inside. */
export const LOADTEST_IMPORTS: readonly string[] = ['core', 'config/checks', 'config/secret', 'config/suggest'];

/** Rows that may import everything below; nothing imports them. */
export const TOP = ['cli', 'index.ts'];

/** Packages that one folder of src/ alone may import, so that they can be replaced there. */
export const PACKAGE_HOMES: Readonly<Record<string, readonly string[]>> = {
  '@node-rs/helper': ['native'],
  '@anush008/tokenizers': ['text'],
  '@huggingface/jinja': ['text'],
  '@opentelemetry/api': ['telemetry'],
  'prom-client': ['telemetry'],
  pino: ['telemetry'],
  undici: ['download'],
  yaml: ['config'],
  commander: ['cli'],
  hono: ['server', 'cli'],
  '@hono/node-server': ['server', 'cli'],
};

/** Folders of native/ and the folders that their files may include, beside their own. */
export const INCLUDES: Readonly<Record<string, readonly string[]>> = {
  core: [],
  model: ['core'],
  cpu: ['core'],
  cuda: ['core'],
  addon: ['core', 'model'],
  test: ['core', 'model', 'cpu', 'cuda'],
  bench: ['core', 'model', 'cpu', 'cuda'],
};
/** Headers through which the addon and the model's tests get a backend without seeing its insides. */
export const BACKEND_DOOR = /^(cpu|cuda)\/\w*(backend|factory)\w*\.h$/;

/** System headers and the folder of native/ that alone may include them. */
export const HEADER_HOMES: readonly { readonly header: RegExp; readonly home: string }[] = [
  { header: /^(napi|node_api|node_api_types)\.h$/, home: 'addon/' },
  { header: /^(\w*intrin|arm_neon|arm_sve)\.h$/, home: 'cpu/isa/' },
  { header: /^(cuda\w*|cublas\w*)\.h$/, home: 'cuda/' },
];

interface Ban {
  readonly what: string;
  readonly instead: string;
  /** Paths where it is allowed. */
  readonly except?: RegExp;
}

/** Member accesses in TypeScript. */
export const BANNED_MEMBERS: Readonly<Record<string, Ban>> = {
  console: { what: 'console', instead: 'a Logger of src/telemetry, or the stream that the caller gives' },
  'process.env': {
    what: 'process.env',
    instead: 'an option of src/config/options.ts',
    // Tests that start a server as users do hand their own environment on.
    except: /^(src\/config\/environment\.ts|test\/support\/.*)$/,
  },
  'Date.now': { what: 'Date.now', instead: 'a Clock of src/core/clock.ts', except: /^src\/core\/clock\.ts$/ },
  'performance.now': {
    what: 'performance.now',
    instead: 'a Clock of src/core/clock.ts',
    except: /^src\/core\/clock\.ts$/,
  },
};

/** The words are put together here, so that this file does not hold them. */
const LEFTOVERS = ['TO' + 'DO', 'FIX' + 'ME', 'XX' + 'X'].join('|');

/** Text that stands in no file, whatever the language. */
export const BANNED_TEXT: readonly (Ban & { readonly pattern: RegExp })[] = [
  {
    what: 'a leftover note',
    pattern: new RegExp(`\\b(${LEFTOVERS})\\b`),
    instead: 'finish it, or write what is missing into an issue',
  },
  {
    what: 'the host of a package registry',
    pattern: /\b(registry[.]npmjs|npmjs[.]org|pypi[.]org|pythonhosted[.]|yarnpkg[.]com|npmmirror[.])/,
    instead: 'the registry that npm and pip are set up with; name the package, not the host',
    except: /^package-lock\.json$/,
  },
  {
    what: 'an absolute path of one machine',
    pattern: /(?<![\w.}~$)-])\/(home|root|Users|work|workspace)\/\w/,
    instead: 'a path relative to the repository, a temporary folder or an option',
  },
];

/** Lines at which a reader loses the thread. Longer needs a reason in LONG. */
export const TRIPWIRES = { typescriptFile: 400, nativeFile: 600, functionLines: 70 } as const;

/** Files (`path`) and functions (`path#name`) that may be longer, with the reason. An entry that is no longer needed fails. */
export const LONG: Readonly<Record<string, string>> = {
  'src/config/options.ts': 'a table: one entry an option, nothing but data',
  'native/test/cpu_terms_test.cpp#check_slices': 'one ragged case written out: packing, both kernels, the reference',
  'src/engine/build-plan.test.ts#a mixed step has exactly these arrays':
    'a plan written out array by array; nothing but data',
};

/** Files that nobody imports because something else starts them. */
export const ENTRIES: readonly { readonly path: RegExp; readonly startedBy: string }[] = [
  { path: /^src\/cli\/main\.ts$/, startedBy: 'scripts/manyfold.mjs' },
  { path: /^src\/index\.ts$/, startedBy: 'the exports of package.json' },
  { path: /\.test\.ts$/, startedBy: 'npm test' },
  { path: /^bench\/[\w-]+\.ts$/, startedBy: 'its command in docs/benchmarks' },
  { path: /^test\/fuzz\/[\w-]+\.ts$/, startedBy: '.ci/run' },
  { path: /^loadtest\/report\/testing\/check-pages\.ts$/, startedBy: 'its command in docs/loadtest.md' },
  { path: /^test\/kl-formats\.ts$/, startedBy: '.ci/run' },
];
