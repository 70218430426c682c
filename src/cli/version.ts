/** Name and version of this build, read from package.json. Called by program.ts and by the server's /version route. */
import { readFileSync } from 'node:fs';
import { arch, platform } from 'node:os';

/** From dist/src/cli to the repository's root. */
const PACKAGE_JSON = new URL('../../../package.json', import.meta.url);

export function packageVersion(): string {
  const parsed: unknown = JSON.parse(readFileSync(PACKAGE_JSON, 'utf8'));
  const version = typeof parsed === 'object' && parsed !== null && 'version' in parsed ? parsed.version : undefined;
  return typeof version === 'string' ? version : 'unknown';
}

export function versionLine(): string {
  return `manyfold ${packageVersion()} (Node ${process.version}, ${platform()} ${arch()})`;
}
