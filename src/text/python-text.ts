/**
 * The few pieces of Python's text handling that chat templates depend on and JavaScript does differently.
 * Used by jinja-python.ts.
 */

/** What `str.isspace` calls white space; JavaScript's trim also takes U+FEFF and leaves U+001C to U+001F and U+0085. */
const PYTHON_SPACE = new Set(
  '\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a' +
    '\u2028\u2029\u202f\u205f\u3000',
);

export type StripSide = 'strip' | 'lstrip' | 'rstrip';

/** Python's str.strip and its kin: `characters` is a set, white space when left out. */
export function pythonStrip(text: string, side: StripSide, characters?: string): string {
  const strips = characters === undefined ? PYTHON_SPACE : new Set(characters);
  const points = Array.from(text);
  let from = 0;
  let to = points.length;
  if (side !== 'rstrip') while (from < to && strips.has(points[from] ?? '')) from += 1;
  if (side !== 'lstrip') while (to > from && strips.has(points[to - 1] ?? '')) to -= 1;
  return points.slice(from, to).join('');
}

const MONTHS = [
  'January',
  'February',
  'March',
  'April',
  'May',
  'June',
  'July',
  'August',
  'September',
  'October',
  'November',
  'December',
] as const;
const DAYS = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday'] as const;

/** Python's datetime.strftime in the C locale, local time; a directive that templates do not use stays as it is. */
export function pythonStrftime(date: Date, format: string): string {
  const two = (value: number): string => String(value).padStart(2, '0');
  const hour12 = date.getHours() % 12 === 0 ? 12 : date.getHours() % 12;
  return format.replace(/%([a-zA-Z%])/g, (directive, letter: string) => {
    switch (letter) {
      case 'Y':
        return String(date.getFullYear());
      case 'y':
        return two(date.getFullYear() % 100);
      case 'm':
        return two(date.getMonth() + 1);
      case 'd':
        return two(date.getDate());
      case 'e':
        return String(date.getDate()).padStart(2, ' ');
      case 'B':
        return MONTHS[date.getMonth()] ?? '';
      case 'b':
        return (MONTHS[date.getMonth()] ?? '').slice(0, 3);
      case 'A':
        return DAYS[date.getDay()] ?? '';
      case 'a':
        return (DAYS[date.getDay()] ?? '').slice(0, 3);
      case 'H':
        return two(date.getHours());
      case 'I':
        return two(hour12);
      case 'p':
        return date.getHours() < 12 ? 'AM' : 'PM';
      case 'M':
        return two(date.getMinutes());
      case 'S':
        return two(date.getSeconds());
      case '%':
        return '%';
      default:
        return directive;
    }
  });
}
