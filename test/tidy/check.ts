/**
 * The checker behind test/tidy.test.ts: reads every file once and returns what breaks a rule of tables.ts. Each failure
 * names the file, the line and what to use instead. Pure: files come in as text, so that its own tests need no disk.
 */
import { posix } from 'node:path';
import ts from 'typescript';
import {
  BACKEND_DOOR,
  BANNED_MEMBERS,
  BANNED_TEXT,
  ENTRIES,
  HEADER_HOMES,
  IMPORTS,
  INCLUDES,
  LOADTEST_IMPORTS,
  LONG,
  PACKAGE_HOMES,
  TOP,
  TRIPWIRES,
} from './tables.js';

export interface SourceFile {
  /** From the repository's root, with forward slashes. */
  readonly path: string;
  readonly text: string;
}

export interface Failure {
  readonly path: string;
  readonly line: number;
  readonly problem: string;
  readonly instead: string;
}

type Report = (line: number, problem: string, instead: string) => void;

/** All failures of the files together. `folders` are those that exist below the root, for the code map. */
export function check(files: readonly SourceFile[], folders: readonly string[] = []): Failure[] {
  const failures: Failure[] = [];
  const references = new Set<string>();
  const longs = new Set<string>();
  for (const file of files) {
    const report: Report = (line, problem, instead) => void failures.push({ path: file.path, line, problem, instead });
    const measure = measurer(report, longs);
    checkText(file, report);
    if (file.path.endsWith('.ts')) checkTypescript(file, { report, references, measure });
    if (/^native\/.*\.(h|cpp|cu|cuh)$/.test(file.path)) checkNative(file, { report, references, measure });
    if (file.path === 'ARCHITECTURE.md') checkCodeMap(file, folders, report);
  }
  failures.push(...unreferenced(files, references));
  for (const key of Object.keys(LONG)) {
    const present = files.some(({ path }) => path === key.split('#')[0]);
    if (present && !longs.has(key)) failures.push(stale(key));
  }
  return failures;
}

function stale(key: string): Failure {
  return {
    path: 'test/tidy/tables.ts',
    line: 1,
    problem: `LONG has '${key}', which is short now`,
    instead: 'delete the entry',
  };
}

/** A comment line that is a statement, or opens or closes a block. Prose may end in a semicolon, but begins otherwise. */
const COMMENTED_OUT =
  /^\s*\/\/\s*((const|let|var|return|throw|await|export|auto|int|float|void|bool)\b.*;|[\w.$[\]<>:-]+\s*(\(|\+?=).*;|import .* from .*|(if|for|while) \(.*\{|\}[;,)]*)$/;

function checkText({ path, text }: SourceFile, report: Report): void {
  text.split('\n').forEach((line, index) => {
    for (const { pattern, what, instead, except } of BANNED_TEXT) {
      if (pattern.test(line) && except?.test(path) !== true) report(index + 1, what, instead);
    }
    if (COMMENTED_OUT.test(line)) {
      report(index + 1, 'commented-out code', 'delete it; the log of the repository keeps it');
    }
  });
}

type Measure = (key: string, lines: number, limit: number, line: number) => void;

function measurer(report: Report, longs: Set<string>): Measure {
  return (key, lines, limit, line) => {
    if (lines <= limit) return;
    longs.add(key);
    if (LONG[key] === undefined)
      report(line, `${key} has ${lines} lines, over ${limit}`, 'split it, or give LONG a reason');
  };
}

interface Walk {
  readonly report: Report;
  readonly references: Set<string>;
  readonly measure: Measure;
}

function checkTypescript({ path, text }: SourceFile, { report, references, measure }: Walk): void {
  measure(path, text.split('\n').length - 1, TRIPWIRES.typescriptFile, 1);
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.ES2022, true);
  const lineOf = (position: number): number => source.getLineAndCharacterOfPosition(position).line + 1;
  const visit = (node: ts.Node): void => {
    const line = lineOf(node.getStart());
    if (ts.isStringLiteralLike(node) && /^\.\.?\//.test(node.text)) {
      references.add(posix.join(posix.dirname(path), node.text).replace(/\.js$/, '.ts'));
    }
    const specifier = specifierOf(node);
    if (specifier !== undefined) checkImport(path, specifier, (problem, instead) => report(line, problem, instead));
    checkNode(node, path, (problem, instead) => report(line, problem, instead));
    if (ts.isFunctionLike(node) && 'body' in node && node.body !== undefined && !isSuite(node)) {
      measure(`${path}#${nameOf(node)}`, lineOf(node.end) - line + 1, TRIPWIRES.functionLines, line);
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
}

/** The body of `describe('x', () => { ... })` is a list of tests, not a function to be read at once. */
function isSuite({ parent }: ts.Node): boolean {
  return ts.isCallExpression(parent) && /^(describe|suite)$/.test(parent.expression.getText());
}

/** A function's own name, or that of the variable or the test that it belongs to. */
function nameOf(node: ts.SignatureDeclaration): string {
  if (node.name !== undefined) return node.name.getText();
  const { parent } = node;
  if (ts.isVariableDeclaration(parent) || ts.isPropertyAssignment(parent)) return parent.name.getText();
  const [title] = ts.isCallExpression(parent) ? parent.arguments : [];
  return title !== undefined && ts.isStringLiteralLike(title) ? title.text : 'anonymous';
}

function specifierOf(node: ts.Node): string | undefined {
  if ((ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) && node.moduleSpecifier !== undefined) {
    return ts.isStringLiteral(node.moduleSpecifier) ? node.moduleSpecifier.text : undefined;
  }
  if (!ts.isCallExpression(node) || node.expression.kind !== ts.SyntaxKind.ImportKeyword) return undefined;
  const [argument] = node.arguments;
  return argument !== undefined && ts.isStringLiteral(argument) ? argument.text : undefined;
}

type Complain = (problem: string, instead: string) => void;

function checkImport(path: string, specifier: string, complain: Complain): void {
  const [top, from = ''] = path.split('/');
  if (top === 'loadtest') return checkLoadtestImport(path, specifier, complain);
  if (top !== 'src') return;
  const home =
    PACKAGE_HOMES[
      specifier
        .split('/')
        .slice(0, specifier.startsWith('@') ? 2 : 1)
        .join('/')
    ];
  if (home !== undefined && !home.includes(from) && !path.endsWith('.test.ts')) {
    complain(`${from} imports ${specifier}`, `go through src/${home[0]}, which alone knows it`);
  }
  if (!specifier.startsWith('.') || TOP.includes(from)) return;
  const target = posix.join(posix.dirname(path), specifier).replace(/\.js$/, '');
  const [targetTop, to = ''] = target.split('/');
  const allowed = IMPORTS[from];
  if (allowed === undefined) return complain(`src/${from} has no row`, 'add one to IMPORTS in test/tidy/tables.ts');
  if (targetTop === 'test' && path.endsWith('.test.ts')) return;
  if (targetTop === 'src' && (to === from || allowed.includes(to) || allowed.includes(target.slice(4)))) return;
  complain(
    `${from} imports ${target}`,
    `it may import ${allowed.join(', ') || 'nothing'}; let service or cli join them`,
  );
}

/** The load generator talks to servers over HTTP only: of src/ it sees vocabulary, never the server. */
function checkLoadtestImport(path: string, specifier: string, complain: Complain): void {
  if (!specifier.startsWith('.')) return;
  const target = posix.join(posix.dirname(path), specifier).replace(/\.js$/, '');
  const isAllowed = LOADTEST_IMPORTS.some(
    (allowed) => target === `src/${allowed}` || target.startsWith(`src/${allowed}/`),
  );
  if (target.startsWith('loadtest/') || isAllowed) return;
  complain(
    `loadtest imports ${target}`,
    `it may import ${LOADTEST_IMPORTS.join(', ')}; the server is reached over HTTP`,
  );
}

function checkNode(node: ts.Node, path: string, complain: Complain): void {
  if (ts.isPropertyAccessExpression(node)) {
    const object = node.expression.getText();
    const ban = BANNED_MEMBERS[object] ?? BANNED_MEMBERS[`${object}.${node.name.text}`];
    if (ban !== undefined && ban.except?.test(path) !== true) complain(ban.what, ban.instead);
    if (/^(test|it|describe|suite)$/.test(object) && /^(only|skip|todo)$/.test(node.name.text)) {
      complain(`${object}.${node.name.text}`, 'run every test; delete the ones that no longer say anything');
    }
  }
  if (ts.isPropertyAssignment(node) && /^(only|skip|todo)$/.test(node.name.getText()) && isTestOptions(node.parent)) {
    complain(`a test with ${node.name.getText()}`, 'run every test; delete the ones that no longer say anything');
  }
  if (ts.isNewExpression(node) && node.getText() === 'new Date()' && path !== 'src/core/clock.ts') {
    complain('new Date()', 'a Clock of src/core/clock.ts');
  }
  if (node.kind === ts.SyntaxKind.AnyKeyword) complain('any', 'unknown and a check, or the real type');
  if (ts.isAsExpression(node) && ts.isAsExpression(node.expression)) {
    if (node.expression.type.kind === ts.SyntaxKind.UnknownKeyword)
      complain('as unknown as', 'a check that narrows the type');
  }
  const isDefault =
    ts.canHaveModifiers(node) && ts.getModifiers(node)?.some(({ kind }) => kind === ts.SyntaxKind.DefaultKeyword);
  if (ts.isExportAssignment(node) || isDefault === true) complain('a default export', 'a named export');
}

function isTestOptions(node: ts.Node): boolean {
  return ts.isCallExpression(node.parent) && /^(test|it|describe|suite)$/.test(node.parent.expression.getText());
}

function checkNative({ path, text }: SourceFile, { report, references, measure }: Walk): void {
  const lines = text.split('\n');
  measure(path, lines.length - 1, TRIPWIRES.nativeFile, 1);
  let start = -1;
  lines.forEach((line, index) => {
    const include = /^\s*#\s*include\s+(["<])([^">]+)[">]/.exec(line);
    if (include !== null)
      checkInclude(path, include, references, (problem, instead) => report(index + 1, problem, instead));
    // clang-format puts definitions at column 0 and their last brace alone: blocks can be told by that.
    const head = lines[start] ?? '';
    if (/^[A-Za-z~]/.test(line) && !head.includes('(')) start = line.endsWith(';') ? -1 : index;
    if (!line.startsWith('}')) return;
    const name = /([\w~:]+)\s*\(/.exec(head)?.[1];
    if (name !== undefined) measure(`${path}#${name}`, index - start + 1, TRIPWIRES.functionLines, start + 1);
    start = -1;
  });
}

function checkInclude(path: string, include: RegExpExecArray, references: Set<string>, complain: Complain): void {
  const [, quote, header = ''] = include;
  const inside = path.slice('native/'.length);
  if (quote === '<') {
    const rule = HEADER_HOMES.find((candidate) => candidate.header.test(header));
    if (rule !== undefined && !inside.startsWith(rule.home))
      complain(`<${header}>`, `only native/${rule.home} includes it`);
    return;
  }
  const from = inside.split('/')[0] ?? '';
  const fromHere = posix.join(posix.dirname(inside), header);
  // Both roots count as used: a file name is enough to know that somebody includes it.
  references.add(`native/${fromHere}`).add(`native/${header}`);
  const isRooted = INCLUDES[header.split('/')[0] ?? ''] !== undefined;
  const target = isRooted && header.includes('/') ? header : fromHere;
  const to = target.split('/')[0] ?? '';
  if (from === 'third_party' || to === 'third_party' || to === from) return;
  const allowed = INCLUDES[from];
  if (allowed === undefined) return complain(`native/${from} has no row`, 'add one to INCLUDES in test/tidy/tables.ts');
  if (allowed.includes(to) || (from === 'addon' && BACKEND_DOOR.test(target))) return;
  complain(
    `${from} includes ${target}`,
    `it may include ${allowed.join(', ') || 'nothing'}; contracts lie in native/core`,
  );
}

/** Modules and headers that nobody uses, and sources that the addon's build does not list. */
function unreferenced(files: readonly SourceFile[], references: ReadonlySet<string>): Failure[] {
  const build = files
    .filter(({ path }) => /^native\/(.*\.gypi?|test\/Makefile)$/.test(path))
    .map(({ text }) => text)
    .join('\n');
  return files.flatMap(({ path }): Failure[] => {
    const isModule =
      /^(src|test|bench|loadtest)\/.*\.ts$/.test(path) && !ENTRIES.some((entry) => entry.path.test(path));
    const isHeader = /^native\/.*\.(h|cuh)$/.test(path) && !path.includes('third_party/');
    if ((isModule || isHeader) && !references.has(path)) {
      return [{ path, line: 1, problem: 'nobody imports it', instead: 'delete it, or name what starts it in ENTRIES' }];
    }
    const isSource = /^native\/(addon|core|model|cpu)\/.*\.cpp$/.test(path);
    if (!isSource || build === '' || build.includes(posix.basename(path))) return [];
    return [
      { path, line: 1, problem: 'not part of the build', instead: 'list it in native/binding.gyp, or delete it' },
    ];
  });
}

/** Every folder in the first column of ARCHITECTURE.md's code map exists, and every folder of src/ and native/ is there. */
function checkCodeMap({ text }: SourceFile, folders: readonly string[], report: Report): void {
  const named = new Set<string>();
  text.split('\n').forEach((line, index) => {
    const cell = /^\|([^|]*`[^|]*)\|/.exec(line)?.[1] ?? '';
    for (const [, folder = ''] of cell.matchAll(/`([\w/-]+)`/g)) {
      named.add(folder);
      if (!folders.includes(folder))
        report(index + 1, `the folder ${folder} does not exist`, 'delete it from the code map');
    }
  });
  for (const folder of folders.filter((path) => /^((src|native)\/)?[\w-]+$/.test(path))) {
    if (named.has(folder) || /^(src|native|docs|tools)$/.test(folder)) continue;
    report(1, `the folder ${folder} is missing from the code map`, 'say in one sentence what it is');
  }
}
