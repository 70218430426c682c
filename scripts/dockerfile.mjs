/** Reads a Dockerfile into stages of steps, and a .dockerignore into a filter. Called by docker-steps.mjs. */
import { BuildError } from './command.mjs';

/** Instructions that docker-steps.mjs acts on, and those that say something about the image only. */
const KNOWN = new Set([
  'RUN',
  'COPY',
  'WORKDIR',
  'ARG',
  'ENV',
  'USER',
  'ENTRYPOINT',
  'CMD',
  'HEALTHCHECK',
  'STOPSIGNAL',
]);
const SILENT = new Set(['EXPOSE', 'VOLUME', 'LABEL']);

/** Logical lines: comments dropped, lines that end with a backslash joined. */
function logicalLines(text) {
  const kept = text.split('\n').filter((line) => line.trim() !== '' && !line.trimStart().startsWith('#'));
  return kept.join('\n').replaceAll('\\\n', ' ').split('\n');
}

/** `[{ image, name, steps: [{ instruction, rest, line }] }]` in the order of the file. */
export function parseDockerfile(text) {
  const stages = [];
  for (const line of logicalLines(text)) {
    const [, word, rest] = /^\s*(\w+)\s+(.*)$/.exec(line) ?? [];
    const instruction = word?.toUpperCase();
    if (instruction === 'FROM') {
      const [, image, name] = /^(\S+)(?:\s+AS\s+(\S+))?$/i.exec(rest) ?? [];
      stages.push({ image, name: name ?? String(stages.length), steps: [] });
    } else if (KNOWN.has(instruction) && stages.length > 0) {
      stages.at(-1).steps.push({ instruction, rest: rest.trim(), line: line.trim() });
    } else if (!SILENT.has(instruction)) {
      throw new BuildError(`The Dockerfile has '${line.trim()}', which scripts/docker-steps.mjs cannot run. Teach it.`);
    }
  }
  return stages;
}

/** The exec form `["node", "x.js"]`; the shell form is refused, because signals would end at the shell. */
export function parseExec(rest) {
  try {
    const words = JSON.parse(rest);
    if (Array.isArray(words) && words.every((word) => typeof word === 'string')) return words;
  } catch {
    // Falls through to the refusal: it is not JSON.
  }
  throw new BuildError(`Expected the exec form ["program", "argument"], got: ${rest}`);
}

/** Whether a path of the build context (with forward slashes) is left out of it. */
export function ignoreFilter(text) {
  const patterns = text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));
  const expressions = patterns.map((pattern) => {
    if (pattern.startsWith('!'))
      throw new BuildError(`.dockerignore has '${pattern}': exceptions are not supported here.`);
    const body = pattern
      .replace(/\/$/, '')
      .replace(/[.+^${}()|[\]\\?]/g, '\\$&')
      .replaceAll('**/', '\u0000')
      .replaceAll('*', '[^/]*')
      .replaceAll('\u0000', '(?:.*/)?');
    return new RegExp(`^${body}(/|$)`);
  });
  return (path) => expressions.some((expression) => expression.test(path));
}
