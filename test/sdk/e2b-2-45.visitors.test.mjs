import * as sdk from 'e2b-2-45'
import { visitors } from './visitors.mjs'

visitors('e2b-2-45', sdk)
