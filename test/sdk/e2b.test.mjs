import * as sdk from 'e2b'
import { flow } from './flow.mjs'

flow('e2b', sdk)
