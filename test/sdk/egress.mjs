// What sandboxes reach on the internet: the policies that E2B's documentation
// shows, as programs write them with any release of its SDK, and what traffic
// makes of each.
import assert from 'node:assert/strict'
import { after, describe, it } from 'node:test'

// Origins of the laboratory's internet. Every web server there answers 200.
const web = ['https://google.com', 'https://www.google.com', 'https://api.example.com', 'https://example.com', 'https://api.github.com',
  'https://github.com', 'https://a.mydomain.com', 'https://mydomain.com', 'http://1.1.1.1', 'http://8.8.8.8', 'http://8.8.4.4']

/**
 * Defines the tests.
 * @param {string} name what is tested
 * @param {object} sdk the SDK's module
 */
export function egress(name, sdk) {
  const { Sandbox, ALL_TRAFFIC } = sdk

  describe(name, () => {
    const made = []
    const create = async (options) => {
      const sandbox = await Sandbox.create({ timeoutMs: 120_000, ...options })
      made.push(sandbox)
      return sandbox
    }
    after(() => Promise.all(made.map((sandbox) => sandbox.kill())))

    // What of the web a sandbox gets an answer from.
    const reached = async (sandbox) => {
      const lines = web.map((url) => `curl -sf -m 3 -o /dev/null ${url} && echo ${url} &`)
      const { stdout } = await sandbox.commands.run(`${lines.join('\n')}\nwait`)
      return new Set(stdout.split('\n').filter(Boolean))
    }
    const expectOnly = async (sandbox, ...urls) => assert.deepEqual([...(await reached(sandbox))].sort(), urls.sort())
    const expectAllBut = (sandbox, ...urls) => expectOnly(sandbox, ...web.filter((url) => !urls.includes(url)))

    describe('internet access', () => {
      it('is there unless it is switched off', async () => {
        await expectAllBut(await create())
        await expectAllBut(await create({ allowInternetAccess: true }))
      })
      it('is gone when it is', async () => {
        await expectOnly(await create({ allowInternetAccess: false }))
      })
    })

    describe('lists', () => {
      it('deny everything but some addresses', async () => {
        await expectOnly(await create({ network: { denyOut: [ALL_TRAFFIC], allowOut: ['1.1.1.1', '8.8.8.0/24'] } }), 'http://1.1.1.1', 'http://8.8.8.8')
      })
      it('deny some addresses', async () => {
        await expectAllBut(await create({ network: { denyOut: ['8.8.4.4'] } }), 'http://8.8.4.4')
        // Names are looked up at 8.8.8.8, so without it addresses are left.
        await expectOnly(await create({ network: { denyOut: ['8.8.8.8'] } }), 'http://1.1.1.1', 'http://8.8.4.4')
      })
      it('take a function for all traffic', async () => {
        const network = { denyOut: ({ allTraffic }) => [allTraffic], allowOut: ['1.1.1.1', '8.8.8.8'] }
        await expectOnly(await create({ network }), 'http://1.1.1.1', 'http://8.8.8.8')
      })
    })

    describe('names', () => {
      it('open one host', async () => {
        await expectOnly(await create({ network: { allowOut: ['google.com'], denyOut: [ALL_TRAFFIC] } }), 'https://google.com')
      })
      it('open what is below a name', async () => {
        await expectOnly(await create({ network: { allowOut: ['*.mydomain.com'], denyOut: [ALL_TRAFFIC] } }), 'https://a.mydomain.com')
      })
      it('stand beside addresses', async () => {
        const network = { allowOut: ['api.example.com', '*.github.com', '8.8.8.8'], denyOut: ({ allTraffic }) => [allTraffic] }
        await expectOnly(await create({ network }), 'https://api.example.com', 'https://api.github.com', 'http://8.8.8.8')
      })
      it('find their addresses at 8.8.8.8', async () => {
        const sandbox = await create({ network: { allowOut: ['google.com'], denyOut: [ALL_TRAFFIC] } })
        const { stdout } = await sandbox.commands.run('cat /etc/resolv.conf; getent ahostsv4 google.com')
        assert.match(stdout, /^nameserver 8\.8\.8\.8\n142\.250\.74\.46 /)
      })
      it('need a denial of all else', async () => {
        await assert.rejects(create({ network: { allowOut: ['google.com'] } }),
          /When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other traffic\./)
      })
      it('are not for the list of denials', async () => {
        await assert.rejects(create({ network: { denyOut: ['google.com'] } }), /invalid denied CIDR google\.com/)
      })
    })

    describe('rules', () => {
      // What a server is told when a sandbox asks it.
      const headers = async (sandbox, url, ...args) => {
        const { stdout } = await sandbox.commands.run(`curl -sSf -m 5 ${args.join(' ')} ${url}/headers`)
        return JSON.parse(stdout).headers
      }

      it('set headers of requests to hosts that are allowed', async () => {
        const sandbox = await create({
          network: {
            allowOut: ({ rules }) => [...rules.keys()],
            denyOut: ({ allTraffic }) => [allTraffic],
            rules: { 'api.example.com': [{ transform: { headers: { 'X-Header': 'Content' } } }] },
          },
        })
        for (const url of ['https://api.example.com', 'http://api.example.com']) {
          assert.deepEqual((await headers(sandbox, url, '-H "x-header: mine" -H "X-HEADER: too"'))['X-Header'], ['Content'])
        }
        await expectOnly(sandbox, 'https://api.example.com')
        const { network } = await sandbox.getInfo()
        assert.deepEqual(network.rules, { 'api.example.com': [{ transform: { headers: { 'X-Header': '[redacted]' } } }] })
      })
      it('come as a Map, and need no denial of all else', async () => {
        const rules = new Map([['api.example.com', [{ transform: { headers: { 'X-Trace': 'on' } } }]]])
        const sandbox = await create({ network: { allowOut: ({ rules }) => [...rules.keys()], rules } })
        assert.deepEqual((await headers(sandbox, 'https://api.example.com'))['X-Trace'], ['on'])
        assert.equal((await headers(sandbox, 'https://google.com'))['X-Trace'], undefined)
        await expectAllBut(sandbox)
      })
      it('open nothing by themselves, and outlive updates', async () => {
        const rules = { '*.github.com': [{ transform: { headers: { 'X-Trace': 'on' } } }] }
        const sandbox = await create({ network: { denyOut: [ALL_TRAFFIC], rules } })
        await expectOnly(sandbox)
        await sandbox.updateNetwork({ denyOut: [ALL_TRAFFIC], allowOut: ['api.github.com'] })
        assert.deepEqual((await headers(sandbox, 'https://api.github.com'))['X-Trace'], ['on'])
        await sandbox.updateNetwork({})
        assert.deepEqual((await headers(sandbox, 'https://api.github.com'))['X-Trace'], ['on'])
        await sandbox.updateNetwork({ rules: { 'api.github.com': [{ transform: { headers: { 'X-Other': 'on' } } }] } })
        const got = await headers(sandbox, 'https://api.github.com')
        assert.deepEqual([got['X-Trace'], got['X-Other']], [undefined, ['on']])
      })
      it('take what the server adds to a transform', async () => {
        const rules = { 'api.example.com': [{ transform: { headers: { 'X-Trace': 'on' }, stripCredentials: true } }] }
        const sandbox = await create({ network: { rules } })
        const got = await headers(sandbox, 'https://api.example.com', '-H "Authorization: mine"')
        assert.deepEqual([got.Authorization, got['X-Trace']], [undefined, ['on']])
      })
      it('are refused when they cannot be kept', async () => {
        const refused = (rules, why) => assert.rejects(create({ network: { rules } }), why)
        await refused({ 'api.example.com': [{ transform: { headers: { A: '${e2b.secrets.gone}' } } }] }, /Secret "gone" does not exist/)
        await refused({ 'api.example.com': [{ transform: { headers: { Host: 'other' } } }] }, /header Host cannot be set/)
        await refused({ 'api.example.com:443': [{ transform: { headers: { A: 'b' } } }] }, /is not a valid domain name/)
        await refused({ 'api.example.com': [{}, {}] }, /can have at most 1 transform rule/)
      })
    })

    describe('updates', () => {
      it('replace the policy of a running sandbox', async () => {
        const sandbox = await create()
        await sandbox.updateNetwork({ denyOut: ['8.8.8.8'] })
        await expectOnly(sandbox, 'http://1.1.1.1', 'http://8.8.4.4')
        await sandbox.updateNetwork({ denyOut: ({ allTraffic }) => [allTraffic], allowOut: ['api.example.com'] })
        await expectOnly(sandbox, 'https://api.example.com')
        await sandbox.updateNetwork({ allowInternetAccess: false })
        await expectOnly(sandbox)
        await sandbox.updateNetwork({})
        await expectAllBut(sandbox)
      })
    })
  })
}
