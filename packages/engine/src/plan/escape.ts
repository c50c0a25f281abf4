/** Text for HTML and SVG: what plans, programs and servers have said must not become markup. */

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
}

/** `text` as text of an element or value of a quoted attribute; control characters become blanks, lines stay. */
export function escapeHtml(text: string): string {
  return text.replaceAll(/[&<>"']/g, (mark) => ENTITIES[mark] ?? '').replaceAll(/[^\P{Cc}\n\t]/gu, ' ')
}
