// Writes results as JSON, as a table into bench/README.md between markers, and as an SVG chart.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const path = (name) => fileURLToPath(new URL(name, import.meta.url))

export function save(name, report) {
  mkdirSync(path('results'), { recursive: true })
  writeFileSync(path(`results/${name}.json`), `${JSON.stringify(report, null, 2)}\n`)
  writeFileSync(path(`results/${name}.svg`), chart(report.groups))
  const readme = readFileSync(path('README.md'), 'utf8')
  const block = `<!-- ${name}:begin -->\n\n${tables(report)}\n\n<!-- ${name}:end -->`
  const marked = new RegExp(`<!-- ${name}:begin -->[\\s\\S]*<!-- ${name}:end -->`)
  writeFileSync(path('README.md'), readme.replace(marked, block))
}

function tables({ groups, machine }) {
  const facts = `${machine.cores} cores (${machine.cpu}), ${machine.memoryGib} GiB, Linux ${machine.kernel}, Node ${machine.node}`
  const stolen =
    machine.stealPercent === undefined
      ? ''
      : ` Of the processor time that was wanted, ${machine.stealPercent} % was taken by the host.`
  return [`Measured on ${facts}.${stolen}`, ...groups.map(tableOf)].join('\n\n')
}

function tableOf({ title, method, unit, results }) {
  const rows = results.map(({ name, median, min, max, count, ratio }) => {
    return `| ${name} | ${number(median)} (${number(min)}-${number(max)}) | ${ratio === undefined ? '' : ratio.toFixed(2)} | ${count} |`
  })
  const head = `| contestant | ${unit}, median (min-max) | ratio | runs |\n|---|---|---|---|`
  return `### ${title}\n\n${method}\n\n${head}\n${rows.join('\n')}`
}

function number(value) {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3)
}

/** One bar a contestant, each group on a scale of its own. */
function chart(groups) {
  const rowHeight = 22
  let y = 10
  const parts = []
  for (const { title, unit, results } of groups) {
    parts.push(`<text x="10" y="${y + 14}" font-weight="bold">${escaped(title)} (${escaped(unit)})</text>`)
    y += rowHeight
    const longest = Math.max(...results.map(({ median }) => median))
    for (const { name, median } of results) {
      const width = Math.max(2, (median / longest) * 420)
      const colour = name.startsWith('secondsite') ? '#2266aa' : '#aaaaaa'
      parts.push(`<text x="220" y="${y + 14}" text-anchor="end">${escaped(name)}</text>`)
      parts.push(`<rect x="228" y="${y + 3}" width="${width.toFixed(1)}" height="14" fill="${colour}"/>`)
      parts.push(`<text x="${(234 + width).toFixed(1)}" y="${y + 14}">${number(median)}</text>`)
      y += rowHeight
    }
    y += 12
  }
  const style = 'font-family="sans-serif" font-size="12"'
  return `<svg xmlns="http://www.w3.org/2000/svg" width="760" height="${y}" ${style}>\n<rect width="100%" height="100%" fill="white"/>\n${parts.join('\n')}\n</svg>\n`
}

const escaped = (text) => text.replace(/&/g, '&amp;').replace(/</g, '&lt;')
