import * as sdk from 'e2b-2-45'
import { flow } from './flow.mjs'

flow('e2b-2-45', sdk)
