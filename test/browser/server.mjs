// A person opens the app of a private sandbox by a link that the API made.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { launch, shoot, socket, visitIn, wantPage } from './page.mjs'

const s = JSON.parse(process.env.SETTING)
const home = `https://${s.port}-${s.id}.${s.domain}/`

let browser
before(async () => { browser = await launch(s.domain) })
after(() => browser.close())
const visit = (f) => visitIn(browser, f)

// call asks the API.
async function call(path, body) {
  const answer = await fetch(`https://api.${s.domain}/sandboxes/${s.id}/${path}`, {
    method: 'POST', headers: { 'X-API-Key': s.key }, body: JSON.stringify(body),
  })
  assert.ok(answer.ok, `${path}: ${answer.status}`)
  return answer.json()
}

test('without a link there is our page', () => visit(async (page) => {
  await wantPage(page, await page.goto(home), 403, 'Missing Traffic Access Token', 'traffic_token_missing')
}))

test('a link of the API opens the app, until the token is replaced', () => visit(async (page) => {
  const link = await call('links', { port: s.port, seconds: 600 })
  assert.ok(link.url.startsWith(home + '?moat-link='), link.url)
  assert.ok(Math.abs(Date.parse(link.expiresAt) - Date.now() - 600_000) < 30_000, link.expiresAt)

  const response = await page.goto(link.url)
  assert.equal(response.status(), 200)
  assert.equal(page.url(), home)
  const seen = await page.textContent('body')
  assert.ok(seen.startsWith(`GET ${s.port}-${s.id}.${s.domain} /`), seen)
  assert.ok(!/moat-link|Cookie/i.test(seen), 'the app sees the credential: ' + seen)
  await shoot(page, 'app')
  assert.equal(await socket(page, home.replace('https', 'wss') + 'ws'), 'hello')
  assert.equal(await page.evaluate(() => new Promise((resolve) => { new EventSource('/events').onmessage = (m) => resolve(m.data) })), 'one')

  await call('traffic-token', {})
  assert.equal(await page.evaluate(() => window.ended), 'closed')
  await wantPage(page, await page.reload(), 403, 'Link Not Valid', 'link_invalid')
}))

test('a link is for its port alone and for its time', () => visit(async (page) => {
  const link = await call('links', { port: s.port + 1, seconds: 600 })
  const moved = link.url.replace(`${s.port + 1}-`, `${s.port}-`)
  await wantPage(page, await page.goto(moved), 403, 'Link Not Valid', 'link_invalid')
  await wantPage(page, await page.goto(link.url), 502, 'Closed Port Error', 'port_closed')

  const brief = await call('links', { port: s.port, seconds: 1 })
  await page.waitForTimeout(1500)
  await wantPage(page, await page.goto(brief.url), 403, 'Link Expired', 'link_expired')
}))
