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
