// What a program does with E2B's SDK, from create to kill, for any of its
// releases. Every test file of this folder runs it with the SDK it is about.
import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { after, before, describe, it } from 'node:test'

// Public URLs are https, as the SDK's documentation has them, unless the
// server under test speaks plain http only.
const scheme = process.env.MOAT_TEST_SCHEME ?? 'https'

/**
 * Defines the tests.
 * @param {string} name what is tested
 * @param {object} sdk the SDK's module
 */
export function flow(name, sdk) {
  const { Sandbox, CommandExitError, TimeoutError } = sdk

  describe(name, () => {
    let sandbox
    before(async () => {
      sandbox = await Sandbox.create({
        metadata: { suite: name, 'k 1': 'v&2=3' },
        envs: { FROM_CREATE: 'one', OVERRIDDEN: 'no' },
        timeoutMs: 120_000,
      })
    })
    after(async () => {
      await sandbox?.kill()
    })

    describe('commands', () => {
      it('run in the foreground', async () => {
        const result = await sandbox.commands.run('echo out; echo err >&2')
        assert.equal(result.stdout, 'out\n')
        assert.equal(result.stderr, 'err\n')
        assert.equal(result.exitCode, 0)
      })

      it('stream their output', async () => {
        const chunks = []
        await sandbox.commands.run('for i in 1 2 3; do echo line $i; sleep 0.05; done', {
          onStdout: (data) => { chunks.push(data) },
        })
        assert.equal(chunks.join(''), 'line 1\nline 2\nline 3\n')
        assert.ok(chunks.length > 1, 'the output came in one piece')
      })

      it('carry text of any kind', async () => {
        const text = 'ünïcödé — 沙盒 🏰 "quoted" $HOME'
        const result = await sandbox.commands.run('printf %s "$TEXT"', { envs: { TEXT: text } })
        assert.equal(result.stdout, text)
      })

      it('report their exit code', async () => {
        await assert.rejects(sandbox.commands.run('echo no >&2; exit 42'), (error) => {
          assert.ok(error instanceof CommandExitError)
          assert.equal(error.exitCode, 42)
          assert.equal(error.stderr, 'no\n')
          return true
        })
        await assert.rejects(sandbox.commands.run('no-such-program'), { exitCode: 127 })
      })

      it('get environment, directory and user', async () => {
        const env = await sandbox.commands.run('echo $FROM_CREATE $OVERRIDDEN $OWN; pwd; whoami; echo $HOME', {
          envs: { OVERRIDDEN: 'yes', OWN: 'three' },
        })
        assert.equal(env.stdout, 'one yes three\n/home/user\nuser\n/home/user\n')
        const root = await sandbox.commands.run('pwd; whoami; echo $HOME', { cwd: '/usr', user: 'root' })
        assert.equal(root.stdout, '/usr\nroot\n/root\n')
        await assert.rejects(sandbox.commands.run('true', { cwd: '/no/such/directory' }), /no\/such\/directory/)
        await assert.rejects(sandbox.commands.run('true', { user: 'nobody-knows' }), /nobody-knows/)
      })

      it('read standard input', async () => {
        const cat = await sandbox.commands.run('cat', { background: true, stdin: true })
        await sandbox.commands.sendStdin(cat.pid, 'hello\n')
        await waitFor(() => cat.stdout === 'hello\n', 'cat to answer')
        await cat.kill()
        await assert.rejects(cat.wait())
      })

      it('run in the background, are listed, and die', async () => {
        const process = await sandbox.commands.run('sleep 1000', { background: true })
        const listed = await sandbox.commands.list()
        const found = listed.find((p) => p.pid === process.pid)
        assert.deepEqual([found?.cmd, found?.args], ['/bin/bash', ['-l', '-c', 'sleep 1000']])
        assert.equal(await process.kill(), true)
        await assert.rejects(process.wait(), (error) => error.exitCode !== 0)
        assert.equal(await sandbox.commands.kill(process.pid), false)
        assert.ok(!(await sandbox.commands.list()).some((p) => p.pid === process.pid))
      })

      it('can be left and joined again', async () => {
        const first = await sandbox.commands.run('until [ -e /tmp/go ]; do sleep 0.05; done; echo done; exit 3', {
          background: true,
        })
        await first.disconnect()
        const second = await sandbox.commands.connect(first.pid)
        await sandbox.commands.run('touch /tmp/go')
        await assert.rejects(second.wait(), (error) => {
          assert.equal(error.exitCode, 3)
          assert.equal(error.stdout, 'done\n')
          return true
        })
        await assert.rejects(sandbox.commands.connect(999_999), /not found/i)
      })

      it('end when their time is over', async () => {
        await assert.rejects(sandbox.commands.run('echo $$ > /tmp/slow; exec sleep 1000', { timeoutMs: 500 }),
          (error) => error instanceof TimeoutError)
        await waitFor(async () => {
          const probe = await sandbox.commands.run('kill -0 $(cat /tmp/slow) 2>/dev/null || echo gone')
          return probe.stdout === 'gone\n'
        }, 'the timed out command to be killed')
      })
    })

    describe('files', () => {
      it('are written, read, listed, renamed and removed', async () => {
        const written = await sandbox.files.write('dir/a.txt', 'content of a')
        assert.equal(written.path, '/home/user/dir/a.txt')
        assert.equal(await sandbox.files.read('dir/a.txt'), 'content of a')
        assert.equal(await sandbox.files.exists('dir/a.txt'), true)
        assert.equal(await sandbox.files.exists('dir/b.txt'), false)

        const several = await sandbox.files.write([
          { path: 'dir/b.txt', data: 'b' },
          { path: '/tmp/deep/er/c.txt', data: 'c' },
        ])
        assert.deepEqual(several.map((f) => f.path), ['/home/user/dir/b.txt', '/tmp/deep/er/c.txt'])

        assert.equal(await sandbox.files.makeDir('dir/sub'), true)
        assert.equal(await sandbox.files.makeDir('dir/sub'), false)
        const entries = await sandbox.files.list('dir')
        assert.deepEqual(entries.map((e) => [e.name, e.type]), [['a.txt', 'file'], ['b.txt', 'file'], ['sub', 'dir']])

        const info = await sandbox.files.getInfo('dir/a.txt')
        assert.deepEqual([info.size, info.owner, info.permissions], [12, 'user', '-rw-r--r--'])

        const moved = await sandbox.files.rename('dir/a.txt', 'dir/moved.txt')
        assert.equal(moved.path, '/home/user/dir/moved.txt')
        await sandbox.files.remove('dir')
        assert.equal(await sandbox.files.exists('dir'), false)
        await assert.rejects(sandbox.files.read('dir/moved.txt'), /does not exist/)
      })

      it('keep every byte', async () => {
        const bytes = new Uint8Array(1 << 20).map((_, i) => (i * 31) ^ (i >> 8))
        await sandbox.files.write('/tmp/bytes', bytes.buffer)
        assert.deepEqual(await sandbox.files.read('/tmp/bytes', { format: 'bytes' }), bytes)
        const sum = await sandbox.commands.run('stat -c %s /tmp/bytes')
        assert.equal(sum.stdout.trim(), String(bytes.length))
      })

      it('belong to the user who writes them', async () => {
        await sandbox.files.write('/tmp/of-root', 'x', { user: 'root' })
        await sandbox.files.write('/tmp/of-user', 'x')
        const owners = await sandbox.commands.run('stat -c %U /tmp/of-root /tmp/of-user')
        assert.equal(owners.stdout, 'root\nuser\n')
      })
    })

    describe('public URL', () => {
      // As in E2B's documentation: no wait between the start of the server and
      // the first request.
      it('shows a server inside the sandbox at once', async () => {
        await sandbox.files.write('/home/user/site/hello.txt', 'hello from inside')
        const server = await sandbox.commands.run('python -m http.server 3000', {
          background: true, cwd: '/home/user/site',
        })
        const host = sandbox.getHost(3000)
        assert.ok(host.startsWith(`3000-${sandbox.sandboxId}.`), host)
        const listing = await fetch(`${scheme}://${host}`)
        assert.equal(listing.status, 200)
        assert.match(await listing.text(), /Directory listing for \//)
        const file = await fetch(`${scheme}://${host}/hello.txt`)
        assert.equal(await file.text(), 'hello from inside')
        assert.equal(await server.kill(), true)
        await assert.rejects(server.wait())
      })

      // The steps of E2B's documentation of restricted access.
      it('can be restricted to those who have the token', async () => {
        const box = await Sandbox.create({ network: { allowPublicTraffic: false } })
        try {
          assert.ok(box.trafficAccessToken)
          await box.commands.run('python -m http.server 8080', { background: true })
          const url = `${scheme}://${box.getHost(8080)}`
          const response1 = await fetch(url)
          assert.equal(response1.status, 403)
          const response2 = await fetch(url, { headers: { 'e2b-traffic-access-token': box.trafficAccessToken } })
          assert.equal(response2.status, 200)
          const again = await Sandbox.connect(box.sandboxId)
          assert.equal(again.trafficAccessToken, box.trafficAccessToken)
        } finally {
          await box.kill()
        }
      })

      it('says that nothing listens', async () => {
        const answer = await fetch(`${scheme}://${sandbox.getHost(3999)}`)
        assert.equal(answer.status, 502)
        assert.match((await answer.json()).message, /port is not open/)
      })
    })

    describe('control', () => {
      it('describes the sandbox', async () => {
        const info = await sandbox.getInfo()
        assert.equal(info.sandboxId, sandbox.sandboxId)
        assert.equal(info.state, 'running')
        assert.deepEqual(info.metadata, { suite: name, 'k 1': 'v&2=3' })
        assert.ok(info.endAt > info.startedAt)
        assert.ok(info.cpuCount > 0 && info.memoryMB > 0)
      })

      it('lists it, by metadata too', async () => {
        const pages = Sandbox.list({ query: { metadata: { suite: name, 'k 1': 'v&2=3' } } })
        const items = await pages.nextItems()
        assert.deepEqual(items.map((s) => s.sandboxId), [sandbox.sandboxId])
        assert.equal(pages.hasNext, false)
        const none = await Sandbox.list({ query: { metadata: { suite: 'another' } } }).nextItems()
        assert.deepEqual(none, [])
      })

      it('lists page by page', async () => {
        const other = await Sandbox.create({ metadata: { suite: name } })
        try {
          const pages = Sandbox.list({ query: { metadata: { suite: name } }, limit: 1 })
          const seen = []
          while (pages.hasNext) seen.push(...await pages.nextItems())
          assert.deepEqual(seen.map((s) => s.sandboxId), [other.sandboxId, sandbox.sandboxId])
        } finally {
          await other.kill()
        }
      })

      it('sets the timeout', async () => {
        await sandbox.setTimeout(300_000)
        const { endAt } = await sandbox.getInfo()
        const left = endAt.getTime() - Date.now()
        assert.ok(left > 280_000 && left < 320_000, `${left} ms left`)
      })

      it('connects from elsewhere', async () => {
        const again = await Sandbox.connect(sandbox.sandboxId)
        const result = await again.commands.run('echo again')
        assert.equal(result.stdout, 'again\n')
        assert.equal(await again.isRunning(), true)
      })

      it('measures', async () => {
        await waitFor(async () => (await sandbox.getMetrics()).length > 0, 'the first metrics')
        const [metric] = await sandbox.getMetrics()
        assert.ok(metric.cpuCount > 0 && metric.memTotal > 0 && metric.diskTotal > 0, JSON.stringify(metric))
      })

      it('refuses what this server does not do, in words', async () => {
        await assert.rejects(sandbox.pause(), /501/)
        await assert.rejects(Sandbox.create('no-such-template'), /404.*no-such-template/s)
        await assert.rejects(Sandbox.create({ network: { allowOut: ['not an address'], denyOut: ['0.0.0.0/0'] } }), /400.*not an address/s)
      })
    })

    describe('network', () => {
      const reach = (box, address) =>
        box.commands.run(`curl -s -o /dev/null -m 5 http://${address}/ && echo yes || echo no`).then((r) => r.stdout.trim())

      it('is open unless told otherwise', async () => {
        assert.equal(await reach(sandbox, '1.1.1.1'), 'yes')
        assert.equal(await reach(sandbox, '93.184.216.34'), 'yes')
      })

      it('allows what is listed only', async () => {
        const box = await Sandbox.create({ network: { denyOut: ['0.0.0.0/0'], allowOut: ['1.1.1.1', '8.8.8.0/24'] } })
        try {
          assert.deepEqual(
            [await reach(box, '1.1.1.1'), await reach(box, '8.8.8.8'), await reach(box, '93.184.216.34')],
            ['yes', 'yes', 'no'])
          const { network } = await box.getInfo()
          assert.deepEqual([network.allowOut, network.denyOut], [['1.1.1.1', '8.8.8.0/24'], ['0.0.0.0/0']])
        } finally {
          await box.kill()
        }
      })

      it('can be switched off', async () => {
        const box = await Sandbox.create({ allowInternetAccess: false })
        try {
          assert.equal(await reach(box, '1.1.1.1'), 'no')
          assert.equal((await box.getInfo()).allowInternetAccess, false)
          const answer = await box.commands.run('echo still here')
          assert.equal(answer.stdout, 'still here\n')
        } finally {
          await box.kill()
        }
      })

      it('changes while the sandbox runs', async () => {
        await sandbox.updateNetwork({ denyOut: ['1.1.1.1'] })
        assert.deepEqual([await reach(sandbox, '1.1.1.1'), await reach(sandbox, '8.8.8.8')], ['no', 'yes'])
        await sandbox.updateNetwork({ denyOut: ({ allTraffic }) => [allTraffic], allowOut: ['93.184.216.34'] })
        assert.deepEqual([await reach(sandbox, '8.8.8.8'), await reach(sandbox, '93.184.216.34')], ['no', 'yes'])
        await sandbox.updateNetwork({ allowInternetAccess: false })
        assert.equal(await reach(sandbox, '93.184.216.34'), 'no')
        await sandbox.updateNetwork({})
        assert.equal(await reach(sandbox, '1.1.1.1'), 'yes')
      })
    })

    describe('end', () => {
      it('kills once', async () => {
        const box = await Sandbox.create()
        assert.equal(await box.kill(), true)
        assert.equal(await box.kill(), false)
        assert.equal(await box.isRunning(), false)
        const answer = await fetch(`${scheme}://${box.getHost(3000)}`)
        assert.equal(answer.status, 502)
        const { sandboxId, message, code } = await answer.json()
        assert.deepEqual({ sandboxId, message, code }, { sandboxId: box.sandboxId, message: 'The sandbox was not found', code: 502 })
        await assert.rejects(Sandbox.connect(box.sandboxId), /not found|doesn't exist/)
      })

      it('cuts a command that still runs', async () => {
        const box = await Sandbox.create()
        const process = await box.commands.run('sleep 1000', { background: true })
        const end = assert.rejects(process.wait())
        await box.kill()
        await end
      })

      it('comes by itself when the time is over', async () => {
        const box = await Sandbox.create({ timeoutMs: 1_000 })
        await waitFor(async () => !(await box.isRunning()), 'the sandbox to end')
      })
    })
  })
}

/** Waits until condition holds, and fails after 30 s. */
async function waitFor(condition, what) {
  const deadline = Date.now() + 30_000
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, `waited in vain for ${what}`)
    await sleep(50)
  }
}
