/**
 * Renders a chat template as transformers would: @huggingface/jinja, corrected where it departs from Jinja in ways
 * that real templates show (strip with and without characters, variables set inside a loop, how true, false and none are
 * written, lengths, `generation` blocks), with the globals that transformers gives and no others. Runs inside template-worker.ts only.
 */
import * as jinja from '@huggingface/jinja';
import type { JsonValue } from './json-value.js';
import { TEXT_LIMITS } from './limits.js';
import { pythonStrftime, pythonStrip, type StripSide } from './python-text.js';

/** A node of the library's syntax tree. */
interface Node {
  readonly type: string;
}

/** A compiled template; opaque. */
export type Program = Node;

/** A scope of variables. */
interface Scope {
  set(name: string, value: unknown): void;
}
interface Evaluator {
  evaluate(node: Node | undefined, scope: Scope): RuntimeValue;
}
/** What is used of the library, whose own declarations do not resolve from an ES module. */
interface Jinja {
  readonly tokenize: (source: string, options: Readonly<Record<'lstrip_blocks' | 'trim_blocks', boolean>>) => unknown;
  readonly parse: (tokens: unknown) => Program;
  readonly Environment: new (parent?: Scope) => Scope;
  readonly Interpreter: new (scope: Scope) => Evaluator;
}
const { tokenize, parse, Environment, Interpreter } = jinja as Jinja;

interface BlockNode extends Node {
  readonly body: readonly Node[];
}
interface OutputNode extends Node {
  readonly expression: Node;
}
interface FilterNode extends Node {
  readonly operand: Node;
  readonly filter: Node & { readonly value?: unknown };
}
interface CallNode extends Node {
  readonly callee: Node & {
    readonly computed?: boolean;
    readonly object?: Node;
    readonly property?: Node & { readonly value?: unknown };
  };
  readonly args: readonly Node[];
}

/** A value while a template runs. */
interface RuntimeValue {
  readonly type: string;
  readonly value: unknown;
}

export function compileTemplate(source: string): Program {
  // `{% generation %}` marks assistant text for training; for rendering it is a block without effect.
  const plain = source
    .replace(/\{%(-?)\s*generation\s*(-?)%\}/g, '{%$1 if true $2%}')
    .replace(/\{%(-?)\s*endgeneration\s*(-?)%\}/g, '{%$1 endif $2%}');
  return prepare(parse(tokenize(plain, { lstrip_blocks: true, trim_blocks: true }))) as Program;
}

/** Our own kinds of node: the body of one turn of a loop, and an expression whose value is written out. */
const TURN = 'ManyfoldTurn';
const OUTPUT = 'ManyfoldOutput';
const BLOCKS = new Set(['body', 'alternate', 'defaultBlock']);
const STATEMENTS = new Set([
  'Program',
  'Set',
  'If',
  'For',
  'Macro',
  'CallStatement',
  'FilterStatement',
  'Break',
  'Continue',
  'Comment',
]);

/** Puts our nodes into the syntax tree, in place. */
function prepare(node: unknown): unknown {
  if (Array.isArray(node)) return node.map(prepare);
  if (node instanceof Map) return new Map([...node].map(([key, value]) => [prepare(key), prepare(value)]));
  if (typeof node !== 'object' || node === null) return node;
  for (const [field, value] of Object.entries(node)) {
    const prepared = prepare(value);
    const block = BLOCKS.has(field) && Array.isArray(prepared) ? (prepared as Node[]).map(written) : prepared;
    Object.assign(node, { [field]: block });
  }
  const { type, body } = node as BlockNode;
  return type === 'For' ? Object.assign(node, { body: [like(node, { type: TURN, body })] }) : node;
}

function written(node: Node): Node {
  if (STATEMENTS.has(node.type) || node.type === TURN || node.type === 'StringLiteral') return node;
  return like(node, { type: OUTPUT, expression: node });
}

/** A node of the library's own class, so that its walks over the tree go through it. */
function like<T extends object>(node: object, fields: T): T {
  return Object.assign(Object.create(Object.getPrototypeOf(node) as object) as T, fields);
}

/** Throws what the template raises, and for whatever the template language does not allow. */
export function renderProgram(program: Program, variables: Readonly<Record<string, JsonValue>>, now: Date): string {
  const environment = new Environment();
  for (const [name, value] of Object.entries(globals(now))) environment.set(name, value);
  for (const [name, value] of Object.entries(variables)) environment.set(name, value);
  return String(new PythonInterpreter(environment).evaluate(program, environment).value);
}

/** Names that a template finds beside its variables; `namespace` is the library's own. */
function globals(now: Date): Record<string, unknown> {
  return {
    true: true,
    false: false,
    none: null,
    True: true,
    False: false,
    None: null,
    raise_exception: (message: unknown) => {
      throw new Error(String(message));
    },
    strftime_now: (format: unknown) => pythonStrftime(now, String(format)),
    range,
  };
}

/** Python's range as a list, of bounded length. */
function range(first: unknown, second?: unknown, third?: unknown): number[] {
  const [start, stop] = second === undefined ? [0, Number(first)] : [Number(first), Number(second)];
  const step = third === undefined ? 1 : Number(third);
  if (![start, stop, step].every(Number.isSafeInteger) || step === 0)
    throw new Error('range() wants integers and a step other than 0');
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (length > TEXT_LIMITS.rangeItems)
    throw new Error(`range() of ${length} items is longer than ${TEXT_LIMITS.rangeItems}`);
  return Array.from({ length }, (_, index) => start + index * step);
}

const STRIPS = new Set(['strip', 'lstrip', 'rstrip']);

/** The library's interpreter with Jinja's meaning where the library has its own. */
class PythonInterpreter extends Interpreter {
  override evaluate(node: Node | undefined, scope: Scope): RuntimeValue {
    const text = (value: string): RuntimeValue => super.evaluate({ type: 'StringLiteral', value } as Node, scope);
    switch (node?.type ?? '') {
      case TURN: {
        // Each turn of a loop has its own variables: what it sets ends with it.
        const block: BlockNode = { type: 'Program', body: (node as BlockNode).body };
        return super.evaluate(block, new Environment(scope));
      }
      case OUTPUT: {
        const value = this.evaluate((node as OutputNode).expression, scope);
        if (value.type === 'BooleanValue') return text(value.value === true ? 'True' : 'False');
        return value.type === 'NullValue' ? text('None') : value;
      }
      case 'FilterExpression': {
        const { operand, filter } = node as FilterNode;
        if (filter.type !== 'Identifier' || (filter.value !== 'trim' && filter.value !== 'length')) break;
        const value = this.evaluate(operand, scope);
        if (value.type !== 'StringValue') break;
        if (filter.value === 'trim') return text(pythonStrip(String(value.value), 'strip'));
        // Python counts code points.
        return super.evaluate({ type: 'IntegerLiteral', value: [...String(value.value)].length } as Node, scope);
      }
      case 'CallExpression': {
        const { callee, args } = node as CallNode;
        const method = callee.property?.value;
        if (callee.type !== 'MemberExpression' || callee.computed === true || callee.object === undefined) break;
        if (typeof method !== 'string' || !STRIPS.has(method)) break;
        const object = this.evaluate(callee.object, scope);
        if (object.type !== 'StringValue') break;
        const [characters] = args.map((argument) => this.evaluate(argument, scope));
        const set = characters === undefined || characters.type === 'NullValue' ? undefined : String(characters.value);
        return text(pythonStrip(String(object.value), method as StripSide, set));
      }
      default:
    }
    return super.evaluate(node, scope);
  }
}
