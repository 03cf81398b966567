// What people and pages do with the public URLs of a private sandbox.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { launch, socket, visitIn, wantPage } from './page.mjs'

const s = JSON.parse(process.env.SETTING)
const host = (id, port = s.app) => `${port}-${id}.${s.domain}:${s.port}`
const url = (id, at = '/', port = s.app) => `${s.scheme}://${host(id, port)}${at}`
const home = url(s.private)
const control = async (what) => (await fetch(s.control + what)).text()

let browser
before(async () => { browser = await launch(s.domain) })
after(() => browser.close())
const visit = (f, options) => visitIn(browser, f, options)

const byLink = async (life = '1h', at = '/') => url(s.private, at) + (at.includes('?') ? '&' : '?') + await control('/link?for=' + life)

const wsURL = (at = '/ws') => url(s.private, at).replace(/^http/, 'ws')

test('without a link there is a page that says so', () => visit(async (page) => {
  await wantPage(page, await page.goto(home), 403, 'Missing Traffic Access Token', 'traffic_token_missing')
  await page.goto(url(s.neighbour)) // our own page may open nothing at all
  assert.equal(await socket(page, wsURL()), 'refused')
}))

test('a link opens the app, its WebSocket and its events', () => visit(async (page, context) => {
  const response = await page.goto(await byLink('1h', '/?a=1'))
  assert.equal(response.status(), 200)
  assert.equal(page.url(), home + '?a=1')
  assert.equal(await page.textContent('h1'), '/')
  assert.equal(await page.evaluate(() => window.loaded), true)
  assert.equal(await page.evaluate(() => document.cookie), '')

  const [cookie, ...more] = await context.cookies()
  assert.deepEqual(more, [])
  assert.equal(cookie.name, s.scheme === 'https' ? '__Host-moat-link' : 'moat-link')
  assert.equal(cookie.secure, s.scheme === 'https')
  assert.equal(cookie.httpOnly, true)
  assert.equal(cookie.sameSite, 'Lax')
  assert.equal(cookie.domain, host(s.private).split(':')[0]) // no dot in front: for this host alone

  assert.equal(await socket(page, wsURL()), 'hello')
  assert.equal(await page.evaluate(() => new Promise((resolve) => { new EventSource('/events').onmessage = (m) => resolve(m.data) })), 'one')
  assert.equal(await page.evaluate(async () => (await fetch('/echo', { method: 'POST', body: 'hi' })).text()), 'POST cookies="" hi')
  await page.click('a')
  assert.equal(await page.textContent('h1'), '/next')
}))

test('a link on another site works', () => visit(async (page) => {
  await page.goto(url(s.neighbour))
  await page.evaluate((to) => { document.querySelector('a').href = to }, await byLink())
  await Promise.all([page.waitForURL(home), page.click('a')])
  assert.equal(await page.textContent('h1'), '/')
}))

test("a neighbour's page cannot use the cookie", () => visit(async (page) => {
  await page.goto(await byLink())
  await page.goto(url(s.neighbour))
  assert.equal(await socket(page, wsURL('/stolen-ws')), 'refused')
  const results = await page.evaluate(async (base) => {
    const read = (options) => fetch(base + 'stolen-echo', { credentials: 'include', ...options }).then((r) => `${r.type} ${r.status}`, () => 'refused')
    const element = (name, set) => new Promise((resolve) => {
      const e = document.createElement(name)
      e.onload = () => resolve('loaded')
      e.onerror = () => resolve('refused')
      set(e)
      document.body.append(e)
    })
    window.loaded = false
    await element('iframe', (e) => { e.src = base + 'stolen-frame' })
    return {
      get: await read({}),
      post: await read({ method: 'POST', body: 'x', mode: 'no-cors' }),
      script: await element('script', (e) => { e.src = base + 'stolen.js' }),
      ran: window.loaded,
    }
  }, home)
  assert.deepEqual(results, { get: 'refused', post: 'opaque 0', script: 'refused', ran: false })
  assert.ok(!(await page.frames()[1].content()).includes('stolen-frame</h1>'), 'the app was drawn into a frame')

  await page.evaluate((to) => {
    const form = document.createElement('form')
    form.method = 'post'
    form.action = to
    document.body.append(form)
  }, home + 'stolen-echo')
  const [response] = await Promise.all([page.waitForNavigation(), page.evaluate(() => document.forms[0].submit())])
  if (s.domain === 'localhost') { // to browsers each of its names is a site of its own, so they keep the cookie back
    await wantPage(page, response, 403, 'Missing Traffic Access Token', 'traffic_token_missing')
  } else {
    await wantPage(page, response, 403, 'Cross-Site Request Refused', 'cross_site')
  }
}))

test('a page that has the token reads across origins', () => visit(async (page) => {
  await page.goto(url(s.neighbour))
  const token = await control('/token')
  const ask = (headers) => page.evaluate(([to, headers]) =>
    fetch(to, { method: 'PUT', body: 'x', headers }).then((r) => r.text(), () => 'refused'), [home + 'echo', headers])
  assert.equal(await ask({ 'e2b-traffic-access-token': token }), 'PUT cookies="" x')
  assert.equal(await ask({ 'e2b-traffic-access-token': 'wrong' }), 'refused')
  assert.equal(await ask({ 'x-other': 'y' }), 'refused')
}))

test('what a link let in ends when it does', () => visit(async (page) => {
  const expired = await byLink('2s')
  await page.goto(expired)
  assert.equal(await socket(page, wsURL()), 'hello')
  assert.equal(await page.evaluate(() => window.ended), 'closed')
  await wantPage(page, await page.goto(expired), 403, 'Link Expired', 'link_expired')
}))

test('a new token revokes links, cookies and what is open', () => visit(async (page) => {
  const link = await byLink()
  await page.goto(link)
  assert.equal(await socket(page, wsURL()), 'hello')
  await control('/rotate')
  assert.equal(await page.evaluate(() => window.ended), 'closed')
  await wantPage(page, await page.reload(), 403, 'Link Not Valid', 'link_invalid')
  await wantPage(page, await page.goto(link), 403, 'Link Not Valid', 'link_invalid')
  assert.equal((await page.goto(await byLink())).status(), 200)
}))

test('by path an app stays below its prefix', () => visit(async (page, context) => {
  const origin = `${s.scheme}://sandbox.${s.domain}:${s.port}`
  const prefix = `${origin}/sandbox/${s.neighbour}/${s.app}`
  await page.goto(prefix)
  assert.equal(page.url(), prefix + '/')
  assert.equal(await page.evaluate(() => window.loaded), true)
  await page.click('a')
  assert.equal(page.url(), prefix + '/next')
  await page.goto(prefix + '/login')
  assert.equal(page.url(), prefix + '/home')
  const [cookie] = await context.cookies()
  assert.equal(cookie.path, `/sandbox/${s.neighbour}/${s.app}/`)
  // A private sandbox does not open there, cookie or not.
  await page.goto(await byLink())
  const barred = `${origin}/sandbox/${s.private}/${s.app}/`
  await wantPage(page, await page.goto(barred), 403, 'Missing Traffic Access Token', 'traffic_token_missing')
}))

test('every other refusal has its page', () => visit(async (page) => {
  const unknown = url('i' + '0'.repeat(20))
  await wantPage(page, await page.goto(unknown), 502, 'Sandbox Not Found', 'sandbox_not_found')
  await wantPage(page, await page.goto(url(s.silent, '/', 8081)), 502, 'Closed Port Error', 'port_closed')
  await wantPage(page, await page.goto(url(s.silent, '/', '080')), 400, 'Invalid Sandbox Address', 'bad_host')
  await wantPage(page, await page.goto(url(s.silent, '/init', 49983)), 404, 'Endpoint Not Available', 'reserved_path')
  await wantPage(page, await page.goto(`${s.scheme}://sandbox.${s.domain}:${s.port}/sandbox/x`), 400, 'Invalid Path', 'bad_path')
  for (let i = 0; i < 3; i++) await page.goto(unknown)
  await wantPage(page, await page.goto(unknown), 429, 'Too Many Requests', 'too_many_unknown')
}, { viewport: { width: 390, height: 700 } }))
