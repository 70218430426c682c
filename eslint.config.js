/** Lint rules. Prettier decides layout; what crosses files (imports, banned words, lengths) is test/tidy.test.ts. */
import tseslint from 'typescript-eslint';

export default tseslint.config(
  { ignores: ['dist/', 'dist-*/', 'native/', 'node_modules/', 'tools/', '.cache/', '**/.venv/'] },
  { linterOptions: { reportUnusedDisableDirectives: 'error' } },
  {
    files: ['**/*.ts'],
    extends: [...tseslint.configs.recommendedTypeChecked, ...tseslint.configs.stylisticTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      // A promise that nobody awaits is an error that nobody sees.
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/no-misused-promises': 'error',
      '@typescript-eslint/return-await': ['error', 'error-handling-correctness-only'],
      '@typescript-eslint/switch-exhaustiveness-check': [
        'error',
        { considerDefaultExhaustiveForUnions: true, requireDefaultForNonUnion: true },
      ],
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      // Numbers and booleans in messages read well; objects do not, and stay refused.
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
      // An async method without await keeps a port's signature.
      '@typescript-eslint/require-await': 'off',
      // Index signatures of environment-like records read as what they are.
      '@typescript-eslint/dot-notation': 'off',
      // `||` on text means "or when empty"; the rule cannot tell.
      '@typescript-eslint/prefer-nullish-coalescing': ['error', { ignorePrimitives: { string: true } }],
      // It asks for `!`, which hides that an index was not checked; `as number` says what is claimed.
      '@typescript-eslint/non-nullable-type-assertion-style': 'off',
      // A loop over a typed array by index is the readable form where several arrays share the index.
      '@typescript-eslint/prefer-for-of': 'off',
      // Passing on what was caught is fine; making up something that is no Error is not.
      '@typescript-eslint/only-throw-error': ['error', { allowThrowingUnknown: true }],
      // `== null` means null or undefined, which JSON from elsewhere mixes.
      eqeqeq: ['error', 'always', { null: 'ignore' }],
      'no-console': 'error',
      'no-var': 'error',
      'prefer-const': 'error',
      'no-control-regex': 'error',
    },
  },
  {
    files: ['**/*.test.ts'],
    rules: {
      // Parts of fixtures are taken apart and passed on; they hold no `this`.
      '@typescript-eslint/unbound-method': 'off',
      // node:test's own test() returns a promise that the runner awaits.
      '@typescript-eslint/no-floating-promises': [
        'error',
        {
          allowForKnownSafeCalls: [
            { from: 'package', name: ['test', 'it', 'describe', 'suite'], package: 'node:test' },
          ],
        },
      ],
    },
  },
  {
    files: ['src/**/*.ts', 'test/**/*.ts', 'bench/**/*.ts', 'loadtest/**/*.ts'],
    rules: {
      'no-restricted-syntax': [
        'error',
        { selector: 'ExportDefaultDeclaration', message: 'Name the export: a name can be searched and cannot drift.' },
      ],
    },
  },
  {
    files: ['**/*.js', '**/*.mjs'],
    extends: [tseslint.configs.base],
    rules: { eqeqeq: 'error', 'no-console': 'error', 'no-undef': 'off', 'no-var': 'error', 'prefer-const': 'error' },
  },
);
