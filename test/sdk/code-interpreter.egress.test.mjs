import * as sdk from '@e2b/code-interpreter'
import { egress } from './egress.mjs'

egress('@e2b/code-interpreter', sdk)
