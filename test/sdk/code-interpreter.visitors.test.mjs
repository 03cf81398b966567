import * as sdk from '@e2b/code-interpreter'
import { visitors } from './visitors.mjs'

visitors('@e2b/code-interpreter', sdk)
