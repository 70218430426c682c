/**
 * Regular expressions that come with an adapter (target_modules, rank_pattern, alpha_pattern), matched in linear time.
 * They are Python's dialect and may be hostile, so JavaScript's backtracking RegExp never sees them: a subset is parsed
 * here and run as an NFA, which looks at each character once. What is outside of the subset is told to the caller.
 */

/** Instructions of one pattern; bounds the work of a match to this times the length of the text. */
const MAX_INSTRUCTIONS = 1000;
const MAX_PATTERN_CHARS = 4096;
const MAX_GROUP_DEPTH = 32;
const UNBOUNDED = -1;

type CharTest = (char: string) => boolean;
type AssertKind = 'start' | 'end' | 'boundary' | 'noBoundary';

type Node =
  | { readonly kind: 'char'; readonly test: CharTest }
  | { readonly kind: 'assert'; readonly what: AssertKind }
  | { readonly kind: 'sequence' | 'choice'; readonly items: readonly Node[] }
  | { readonly kind: 'repeat'; readonly item: Node; readonly min: number; readonly max: number };

type Instruction =
  | { readonly op: 'char'; readonly test: CharTest }
  | { readonly op: 'assert'; readonly what: AssertKind }
  | { readonly op: 'split'; readonly to: number[] }
  | { readonly op: 'match' };

/** A compiled pattern. */
export class LinearPattern {
  readonly #program: readonly Instruction[];

  private constructor(program: readonly Instruction[]) {
    this.#program = program;
  }

  /** Undefined when the pattern is outside of the subset (look-around, back-references, flags) or too large. */
  static compile(source: string): LinearPattern | undefined {
    if (source.length > MAX_PATTERN_CHARS) return undefined;
    const tree = new Parser(source).parse();
    if (tree === undefined) return undefined;
    const program = new Emitter().program(tree);
    return program === undefined ? undefined : new LinearPattern(program);
  }

  /** Python's re.match: the pattern matches at the start of the text, whatever follows. */
  matchesStart(text: string): boolean {
    return this.#run(text, false);
  }

  /** Python's re.fullmatch. */
  matchesWhole(text: string): boolean {
    return this.#run(text, true);
  }

  #run(text: string, whole: boolean): boolean {
    let threads = new Set<number>();
    this.#follow(0, text, 0, threads);
    for (let at = 0; ; at += 1) {
      if ((!whole || at === text.length) && this.#accepts(threads)) return true;
      if (at === text.length || threads.size === 0) return false;
      const next = new Set<number>();
      for (const pc of threads) {
        const instruction = this.#program[pc];
        if (instruction?.op === 'char' && instruction.test(text.charAt(at))) this.#follow(pc + 1, text, at + 1, next);
      }
      threads = next;
    }
  }

  #accepts(threads: ReadonlySet<number>): boolean {
    for (const pc of threads) if (this.#program[pc]?.op === 'match') return true;
    return false;
  }

  /** Adds `start` and all that is reached from it without reading a character. */
  #follow(start: number, text: string, at: number, threads: Set<number>): void {
    const pending = [start];
    for (let pc = pending.pop(); pc !== undefined; pc = pending.pop()) {
      if (threads.has(pc)) continue;
      threads.add(pc);
      const instruction = this.#program[pc];
      if (instruction?.op === 'split') pending.push(...instruction.to);
      else if (instruction?.op === 'assert' && holds(instruction.what, text, at)) pending.push(pc + 1);
    }
  }
}

function holds(what: AssertKind, text: string, at: number): boolean {
  switch (what) {
    case 'start':
      return at === 0;
    case 'end':
      return at === text.length;
    case 'boundary':
      return isWord(text.charAt(at - 1)) !== isWord(text.charAt(at));
    case 'noBoundary':
      return isWord(text.charAt(at - 1)) === isWord(text.charAt(at));
  }
}

const isWord: CharTest = (char) => /^\w$/.test(char);
const isDigit: CharTest = (char) => /^\d$/.test(char);
const isSpace: CharTest = (char) => /^\s$/.test(char);
const not =
  (test: CharTest): CharTest =>
  (char) =>
    !test(char);

/** Escapes that stand for a class of characters. */
const CLASS_ESCAPES: ReadonlyMap<string, CharTest> = new Map([
  ['w', isWord],
  ['W', not(isWord)],
  ['d', isDigit],
  ['D', not(isDigit)],
  ['s', isSpace],
  ['S', not(isSpace)],
]);
const ASSERT_ESCAPES: ReadonlyMap<string, AssertKind> = new Map([
  ['b', 'boundary'],
  ['B', 'noBoundary'],
  ['A', 'start'],
  ['Z', 'end'],
]);

/** Thrown and caught within this file: the pattern is outside of the subset. */
class Unsupported extends Error {}

class Parser {
  #at = 0;

  constructor(private readonly source: string) {}

  parse(): Node | undefined {
    try {
      const node = this.#choice(0);
      return this.#at === this.source.length ? node : undefined;
    } catch (error) {
      if (error instanceof Unsupported) return undefined;
      throw error;
    }
  }

  #choice(depth: number): Node {
    if (depth > MAX_GROUP_DEPTH) throw new Unsupported();
    const items = [this.#sequence(depth)];
    while (this.#take('|')) items.push(this.#sequence(depth));
    return items.length === 1 ? (items[0] as Node) : { kind: 'choice', items };
  }

  #sequence(depth: number): Node {
    const items: Node[] = [];
    while (/^[^|)]$/s.test(this.#peek())) items.push(this.#repeated(depth));
    return { kind: 'sequence', items };
  }

  #repeated(depth: number): Node {
    const item = this.#atom(depth);
    const bounds = this.#bounds();
    if (bounds === undefined) return item;
    if (item.kind === 'assert') throw new Unsupported();
    // Lazy or greedy decides what a match captures, not whether there is one.
    this.#take('?');
    if (/^[*+?{]$/.test(this.#peek())) throw new Unsupported();
    return { kind: 'repeat', item, ...bounds };
  }

  #bounds(): { min: number; max: number } | undefined {
    if (this.#take('*')) return { min: 0, max: UNBOUNDED };
    if (this.#take('+')) return { min: 1, max: UNBOUNDED };
    if (this.#take('?')) return { min: 0, max: 1 };
    if (this.#peek() !== '{') return undefined;
    const match = /^\{(\d{1,4})?(,)?(\d{1,4})?\}/.exec(this.source.slice(this.#at, this.#at + 12));
    if (match === null || (match[1] === undefined && match[3] === undefined)) throw new Unsupported();
    this.#at += match[0].length;
    const min = Number(match[1] ?? 0);
    if (match[2] === undefined) return { min, max: min };
    const max = match[3] === undefined ? UNBOUNDED : Number(match[3]);
    if (max !== UNBOUNDED && max < min) throw new Unsupported();
    return { min, max };
  }

  #atom(depth: number): Node {
    const char = this.#next();
    switch (char) {
      case '.':
        return { kind: 'char', test: (c) => c !== '\n' };
      case '^':
        return { kind: 'assert', what: 'start' };
      case '$':
        return { kind: 'assert', what: 'end' };
      case '(':
        return this.#group(depth);
      case '[':
        return { kind: 'char', test: this.#set() };
      case '\\':
        return this.#escape();
      case '*':
      case '+':
      case '?':
      case '{':
      case ')':
        throw new Unsupported();
      default:
        return { kind: 'char', test: (c) => c === char };
    }
  }

  #group(depth: number): Node {
    if (this.#take('?')) {
      const kind = /^(?::|P<[A-Za-z_]\w{0,63}>)/.exec(this.source.slice(this.#at, this.#at + 70));
      if (kind === null) throw new Unsupported();
      this.#at += kind[0].length;
    }
    const inner = this.#choice(depth + 1);
    if (!this.#take(')')) throw new Unsupported();
    return inner;
  }

  #escape(): Node {
    const char = this.#next();
    const assertion = ASSERT_ESCAPES.get(char);
    if (assertion !== undefined) return { kind: 'assert', what: assertion };
    return { kind: 'char', test: this.#escapedTest(char) };
  }

  /** `\.` and the like stand for themselves; letters and digits that are no class may mean anything in Python. */
  #escapedTest(char: string): CharTest {
    const known = CLASS_ESCAPES.get(char);
    if (known !== undefined) return known;
    if (char === '' || /[A-Za-z0-9]/.test(char)) throw new Unsupported();
    return (c) => c === char;
  }

  #set(): CharTest {
    const negated = this.#take('^');
    const tests: CharTest[] = [];
    for (let first = true; first || this.#peek() !== ']'; first = false) {
      const low = this.#next();
      if (low === '') throw new Unsupported();
      if (low === '\\') tests.push(this.#escapedTest(this.#next()));
      else if (this.#peek() === '-' && this.source[this.#at + 1] !== ']') tests.push(this.#range(low));
      else tests.push((c) => c === low);
    }
    this.#at += 1;
    const any: CharTest = (c) => tests.some((test) => test(c));
    return negated ? not(any) : any;
  }

  #range(low: string): CharTest {
    this.#at += 1;
    const high = this.#next();
    if (high === '' || high === '\\' || high < low) throw new Unsupported();
    return (c) => c >= low && c <= high;
  }

  #peek(): string {
    return this.source.charAt(this.#at);
  }

  #next(): string {
    const char = this.#peek();
    this.#at += 1;
    return char;
  }

  #take(char: string): boolean {
    if (this.#peek() !== char) return false;
    this.#at += 1;
    return true;
  }
}

class Emitter {
  readonly #out: Instruction[] = [];

  program(tree: Node): readonly Instruction[] | undefined {
    try {
      this.#emit(tree);
      this.#push({ op: 'match' });
      return this.#out;
    } catch (error) {
      if (error instanceof Unsupported) return undefined;
      throw error;
    }
  }

  #push(instruction: Instruction): number {
    if (this.#out.length >= MAX_INSTRUCTIONS) throw new Unsupported();
    return this.#out.push(instruction) - 1;
  }

  #split(...to: number[]): number[] {
    this.#push({ op: 'split', to });
    return to;
  }

  #emit(node: Node): void {
    switch (node.kind) {
      case 'char':
        this.#push({ op: 'char', test: node.test });
        break;
      case 'assert':
        this.#push({ op: 'assert', what: node.what });
        break;
      case 'sequence':
        for (const item of node.items) this.#emit(item);
        break;
      case 'choice':
        this.#choice(node.items);
        break;
      case 'repeat':
        this.#repeat(node.item, node.min, node.max);
        break;
    }
  }

  #choice(items: readonly Node[]): void {
    const starts = this.#split();
    const ends: number[][] = [];
    for (const item of items) {
      starts.push(this.#out.length);
      this.#emit(item);
      ends.push(this.#split());
    }
    for (const end of ends) end.push(this.#out.length);
  }

  #repeat(item: Node, min: number, max: number): void {
    for (let i = 0; i < min; i += 1) this.#emitCounted(item);
    if (max === UNBOUNDED) {
      const loop = this.#out.length;
      const fork = this.#split(loop + 1);
      this.#emitCounted(item);
      this.#split(loop);
      fork.push(this.#out.length);
      return;
    }
    const exits: number[][] = [];
    for (let i = min; i < max; i += 1) {
      exits.push(this.#split(this.#out.length + 1));
      this.#emitCounted(item);
    }
    for (const exit of exits) exit.push(this.#out.length);
  }

  /** Emits at least one instruction, so that a large count of nothing runs into the bound too. */
  #emitCounted(item: Node): void {
    const before = this.#out.length;
    this.#emit(item);
    if (this.#out.length === before) this.#split(before + 1);
  }
}
