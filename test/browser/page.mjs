// Driving Chromium, and what is wanted of every page.
import assert from 'node:assert/strict'
import path from 'node:path'
import { chromium } from 'playwright-core'

// launch starts Chromium, for which a domain is on this machine.
export const launch = (domain) => chromium.launch({
  executablePath: '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync',
    `--host-resolver-rules=MAP *.${domain} 127.0.0.1`],
})

// visitIn runs f with a page of a fresh browser profile.
export async function visitIn(browser, f, options) {
  const context = await browser.newContext(options)
  try {
    const page = await context.newPage()
    page.setDefaultTimeout(15_000)
    await f(page, context)
  } finally {
    await context.close()
  }
}

// shoot keeps a picture of a page, light and dark, for people to look at.
export async function shoot(page, name) {
  if (!process.env.SHOTS) return
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme })
    const { protocol, hostname } = new URL(page.url())
    const domain = hostname.replace(/^[^.]*\./, '')
    await page.screenshot({ path: path.join(process.env.SHOTS, `${protocol.slice(0, -1)}-${domain}-${name}-${colorScheme}.png`) })
  }
}

export async function wantPage(page, response, status, title, code) {
  assert.equal(response.status(), status)
  assert.equal(await page.title(), title)
  assert.ok((await page.textContent('dl')).includes(code), code)
  const sizes = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth])
  assert.ok(sizes[0] <= sizes[1], `the page is ${sizes[0]} wide in a window of ${sizes[1]}`)
  await shoot(page, code)
}

// socket tries a WebSocket from inside a page and says how it went.
export const socket = (page, to) => page.evaluate((to) => new Promise((resolve) => {
  const ws = new WebSocket(to)
  ws.onopen = () => ws.send('hello')
  ws.onmessage = (m) => { resolve(m.data); window.ended = new Promise((r) => { ws.onclose = () => r('closed') }) }
  ws.onerror = () => resolve('refused')
}), to)
