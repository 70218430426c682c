/**
 * The shell of every page: one file that asks nobody for anything. The Content-Security-Policy forbids every request and
 * every script, and allows the page's one style sheet by its hash, so that even markup that slipped through could do nothing.
 */
import { createHash } from 'node:crypto';
import type { Child } from '../markup.js';
import { element, fragment, styleSheet } from '../markup.js';
import { STYLE } from './style.js';

const POLICY = [
  "default-src 'none'",
  `style-src 'sha256-${createHash('sha256').update(STYLE).digest('base64')}'`,
  "base-uri 'none'",
  "form-action 'none'",
].join('; ');

export interface PageOptions {
  readonly title: string;
  readonly header: Child;
  readonly main: Child;
  readonly footer: Child;
}

/** The whole file. */
export function page({ title, header, main, footer }: PageOptions): string {
  const document = element(
    'html',
    { lang: 'en' },
    element(
      'head',
      {},
      element('meta', { charset: 'utf-8' }),
      element('meta', { 'http-equiv': 'Content-Security-Policy', content: POLICY }),
      element('meta', { name: 'viewport', content: 'width=device-width, initial-scale=1' }),
      element('meta', { name: 'referrer', content: 'no-referrer' }),
      element('meta', { name: 'color-scheme', content: 'light dark' }),
      element('title', {}, title),
      styleSheet(STYLE),
    ),
    element('body', {}, element('header', {}, header), element('main', {}, main), element('footer', {}, footer)),
  );
  return `<!doctype html>\n${document.toString()}\n`;
}

/** A part of the page with a heading that the navigation leads to. */
export interface Section {
  readonly id: string;
  readonly title: string;
  readonly body: Child;
}

export function sections(parts: readonly Section[]): Child {
  return parts.map(({ id, title, body }) =>
    element('section', { 'aria-labelledby': id }, element('h2', { id }, title), body),
  );
}

export function navigation(parts: readonly Section[]): Child {
  const links = parts.map(({ id, title }) => element('li', {}, element('a', { href: `#${id}` }, title)));
  return element('nav', { 'aria-label': 'Sections' }, element('ul', {}, links));
}

/** Names and values in two columns. */
export function facts(entries: readonly (readonly [name: string, value: Child])[]): Child {
  return element(
    'dl',
    { class: 'facts' },
    entries.map(([name, value]) => fragment(element('dt', {}, name), element('dd', {}, value))),
  );
}
