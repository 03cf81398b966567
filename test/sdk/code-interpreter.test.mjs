import * as sdk from '@e2b/code-interpreter'
import { flow } from './flow.mjs'

flow('@e2b/code-interpreter', sdk)
